//! Medians, spreads, ratios, as text and as JSON.

use serde_json::{Value, json};

/// One figure for each round.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// Adds the figure of the next round.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// Adds the figures of more rounds.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Round by round, what this is more than `other`.
    pub fn minus(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a - b).collect())
    }

    /// Round by round, this divided by `other`.
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// The figures, in the order of the rounds.
    pub fn all(&self) -> &[f64] {
        &self.0
    }

    /// How many rounds there were.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// The figure below which a part of the rounds lie.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = part * sorted.len().saturating_sub(1) as f64;
        match (sorted.get(at.floor() as usize), sorted.get(at.ceil() as usize)) {
            (Some(low), Some(high)) => low + (high - low) * at.fract(),
            _ => f64::NAN,
        }
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The median and, in brackets, the quartiles.
    pub fn spread(&self, decimals: usize) -> String {
        let [low, high] = self.quartiles();
        format!("{:.decimals$} ({low:.decimals$}-{high:.decimals$})", self.median())
    }

    /// The median and the quartiles.
    pub fn json(&self) -> Value {
        json!({ "median": self.median(), "quartiles": self.quartiles() })
    }

    /// The quartiles: half of the rounds lie between them.
    pub fn quartiles(&self) -> [f64; 2] {
        [self.quantile(0.25), self.quantile(0.75)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_figures() {
        let series = Series(vec![5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(series.median(), 3.0);
        assert_eq!(series.quartiles(), [2.0, 4.0]);
        assert_eq!(Series(vec![1.0, 2.0]).median(), 1.5);
        assert!(Series::default().median().is_nan());
    }

    #[test]
    fn rounds_are_compared_with_their_own() {
        let (a, b) = (Series(vec![10.0, 40.0]), Series(vec![5.0, 10.0]));
        assert_eq!(a.over(&b).0, [2.0, 4.0]);
        assert_eq!(a.minus(&b).0, [5.0, 30.0]);
    }
}
