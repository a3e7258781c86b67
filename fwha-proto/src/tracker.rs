//! Whether what a tracker watches is well: from single checks to a verdict that can be acted on.
//!
//! ```text
//!              a good check              `rise` good checks in a row, and not held
//!   Unknown ------------------------> Up <------------------------------------.
//!      |                               |                                      |
//!      |   `fall` bad checks in a row  |  `fall` bad checks in a row          |
//!      |                               v                                      |
//!      '----------------------------> Down -----------------------------------'
//! ```
//! **Dampening** (the idea of RFC 2439): every fall from Up costs [`PENALTY`]; what was collected halves
//! with each half-life. A fall that brings it to [`SUPPRESS`] holds the tracker Down until it has
//! decayed to [`REUSE`], however good the checks are. So the third fall within half a half-life is held
//! for two half-lives, and none for more than [`HOLD_MAX`] of them. A fall is never delayed.

use std::time::Duration;

use crate::time::Time;

/// What a fall costs.
pub const PENALTY: f64 = 1000.0;
/// At this much a fall is held.
pub const SUPPRESS: f64 = 2000.0;
/// At this much the hold ends.
pub const REUSE: f64 = 750.0;
/// The longest hold, in half-lives.
pub const HOLD_MAX: u32 = 4;

/// How a tracker judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Good checks in a row that end a failure; at least 1.
    pub rise: u32,
    /// Bad checks in a row that make one; at least 1.
    pub fall: u32,
    /// The half-life of dampening; zero for none.
    pub half_life: Duration,
}

/// The verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing is known yet.
    #[default]
    Unknown,
    /// All is well.
    Up,
    /// It fails.
    Down,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Up, Self::Down];

    /// The name under which users see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// How a tracker stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The verdict.
    pub state: State,
    /// Since when.
    pub since: Time,
    /// What the last check said.
    pub text: String,
    /// What the last bad one said.
    pub failure: String,
    /// Good checks so far.
    pub good: u64,
    /// Bad checks so far.
    pub bad: u64,
    /// Until when dampening holds it down.
    pub held_until: Option<Time>,
}

/// One tracker. See the module.
#[derive(Clone, Debug)]
pub struct Tracker {
    settings: Settings,
    report: Report,
    /// Checks in a row with the last one's result.
    streak: u32,
    last: Option<bool>,
    penalty: f64,
    penalty_at: Time,
}

impl Tracker {
    /// One that knows nothing.
    pub fn new(now: Time, settings: Settings) -> Self {
        Self {
            settings,
            report: Report { since: now, ..Report::default() },
            streak: 0,
            last: None,
            penalty: 0.0,
            penalty_at: now,
        }
    }

    /// How it stands.
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// Takes the result of a check, and what it said. Whether the verdict is another now.
    pub fn check(&mut self, now: Time, good: bool, text: String) -> bool {
        self.streak = if self.last == Some(good) { self.streak.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let report = &mut self.report;
        if !good {
            report.failure.clone_from(&text);
        }
        report.text = text;
        *(if good { &mut report.good } else { &mut report.bad }) += 1;
        if report.held_until.is_some_and(|until| now >= until) {
            report.held_until = None;
        }
        let to = match (report.state, good) {
            (State::Unknown, true) => State::Up,
            (State::Unknown | State::Up, false) if self.streak >= self.settings.fall => State::Down,
            (State::Down, true) if self.streak >= self.settings.rise && report.held_until.is_none() => {
                State::Up
            }
            _ => return false,
        };
        if (report.state, to) == (State::Up, State::Down) {
            self.fell(now);
        }
        (self.report.state, self.report.since) = (to, now);
        true
    }

    fn fell(&mut self, now: Time) {
        let half_life = self.settings.half_life.as_secs_f64();
        if half_life == 0.0 {
            return;
        }
        let age = now.since(self.penalty_at).as_secs_f64() / half_life;
        let most = REUSE * f64::from(1u32 << HOLD_MAX);
        self.penalty = (self.penalty * (-age).exp2() + PENALTY).min(most);
        self.penalty_at = now;
        if self.penalty >= SUPPRESS {
            let hold = Duration::from_secs_f64(half_life * (self.penalty / REUSE).log2());
            self.report.held_until = Some(now + hold);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings = Settings { rise: 2, fall: 3, half_life: Duration::from_secs(10) };

    /// Checks, a second each: `+` good, `-` bad. The verdicts after each, as `?`, `+` and `-`.
    fn play(tracker: &mut Tracker, at_s: &mut u64, checks: &str) -> String {
        let mut verdicts = String::new();
        for c in checks.chars() {
            *at_s += 1;
            let before = tracker.report.state;
            let changed = tracker.check(Time::from_millis(*at_s * 1000), c == '+', c.to_string());
            assert_eq!(changed, before != tracker.report.state);
            verdicts.push(match tracker.report.state {
                State::Unknown => '?',
                State::Up => '+',
                State::Down => '-',
            });
        }
        verdicts
    }

    #[test]
    fn verdicts_follow_rows_of_checks() {
        for (checks, verdicts) in [
            ("+", "+"),
            ("--+", "??+"),
            ("---", "??-"),
            ("+--+--+---", "+++++++++-"),
            ("+---+-++", "+++----+"),
        ] {
            assert_eq!(play(&mut Tracker::new(Time::ZERO, SETTINGS), &mut 0, checks), verdicts, "{checks}");
        }
    }

    #[test]
    fn a_report_says_since_when_and_how_often() {
        let mut tracker = Tracker::new(Time::ZERO, SETTINGS);
        play(&mut tracker, &mut 0, "+++----");
        let since = Time::from_millis(6000);
        let (text, failure) = ("-".to_owned(), "-".to_owned());
        let expected = Report { state: State::Down, since, text, failure, good: 3, bad: 4, held_until: None };
        assert_eq!(*tracker.report(), expected);
        // One good check does not make it well; what it fails for is known still.
        play(&mut tracker, &mut 7, "+");
        assert_eq!((&*tracker.report.text, &*tracker.report.failure), ("+", "-"));
        assert_eq!(tracker.report.state, State::Down);
    }

    #[test]
    fn the_third_fall_in_a_short_time_is_held_and_the_hold_ends() {
        let settings = Settings { rise: 1, fall: 1, ..SETTINGS };
        let (mut tracker, mut at_s) = (Tracker::new(Time::ZERO, settings), 0);
        assert_eq!(play(&mut tracker, &mut at_s, "+-+-+-"), "+-+-+-");
        // 1000 * (1 + 2^-0.2 + 2^-0.4) = 2628 at 6 s: until 6 s + 10 s * log2(2628 / 750) = 24.1 s.
        assert_eq!(play(&mut tracker, &mut at_s, &"+".repeat(18)), "-".repeat(18));
        assert!(
            tracker
                .report
                .held_until
                .is_some_and(|at| at.since(Time::from_millis(24_000)) < Duration::from_millis(500))
        );
        assert_eq!(play(&mut tracker, &mut at_s, "++"), "++");
        assert_eq!(tracker.report.held_until, None);
        // Forgotten after some half-lives.
        at_s += 100;
        assert_eq!(play(&mut tracker, &mut at_s, "-+"), "-+");
    }

    #[test]
    fn without_dampening_nothing_is_held() {
        let settings = Settings { rise: 1, fall: 1, half_life: Duration::ZERO };
        let checks = "+-".repeat(50);
        assert_eq!(play(&mut Tracker::new(Time::ZERO, settings), &mut 0, &checks), checks);
    }

    proptest! {
        #[test]
        fn a_verdict_needs_its_row_and_no_hold_outlasts_its_bound(
            rise in 1u32..4,
            fall in 1u32..4,
            checks in prop::collection::vec((any::<bool>(), 1u64..20_000), 1..200),
        ) {
            let settings = Settings { rise, fall, half_life: Duration::from_secs(10) };
            let mut tracker = Tracker::new(Time::ZERO, settings);
            let (mut now, mut row, mut last) = (Time::ZERO, 0, None);
            for (good, after_ms) in checks {
                now = now + Duration::from_millis(after_ms);
                row = if last == Some(good) { row + 1 } else { 1 };
                last = Some(good);
                let before = tracker.report.state;
                tracker.check(now, good, String::new());
                let held = tracker.report.held_until;
                prop_assert!(held.is_none_or(|at| at.since(now) <= settings.half_life * HOLD_MAX));
                match (before, tracker.report.state) {
                    (State::Up | State::Unknown, State::Down) => prop_assert!(!good && row >= fall),
                    (State::Down, State::Up) => prop_assert!(good && row >= rise && held.is_none()),
                    (State::Unknown, State::Up) => prop_assert!(good),
                    (_, State::Unknown) => prop_assert!(before == State::Unknown && row < fall),
                    // Bad for long enough is down, whatever was before.
                    (_, State::Up) => prop_assert!(good || row < fall),
                    (_, State::Down) => prop_assert!(!good || row < rise || held.is_some()),
                }
            }
        }
    }
}
