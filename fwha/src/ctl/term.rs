//! Text for people: colours, aligned columns, durations, times.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

/// A colour, used for the same thing everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    /// As the terminal has it.
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Broken.
    Bad,
    /// Less important.
    Dim,
    /// Headings.
    Bold,
}

/// Whether there are colours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    colours: bool,
    /// Whether standard output is a terminal.
    pub(super) terminal: bool,
}

impl Style {
    /// Colours if standard output is a terminal and `NO_COLOR` is not set (no-color.org).
    pub(super) fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self { colours: terminal && !unwanted, terminal }
    }

    /// `text` in a colour.
    pub(super) fn paint(self, paint: Paint, text: &str) -> String {
        let text = plain(text);
        let code = match paint {
            Paint::Plain => return text.into_owned(),
            _ if !self.colours => return text.into_owned(),
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "31;1",
            Paint::Dim => "2",
            Paint::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// `text` without control characters: a stranger's text must not steer the terminal.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        Cow::Owned(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// Rows of cells, printed in aligned columns, two spaces between them.
#[derive(Debug, Default)]
pub(super) struct Grid {
    rows: Vec<Vec<(Paint, String)>>,
}

impl Grid {
    /// Rows below a heading.
    pub(super) fn with_heading(heading: &[&str]) -> Self {
        let mut grid = Self::default();
        grid.row(heading.iter().map(|h| (Paint::Dim, (*h).to_owned())));
        grid
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = (Paint, String)>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it, each line after `indent`.
    pub(super) fn print(&self, out: &mut impl Write, style: Style, indent: &str) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, (_, text)) in widths.iter_mut().zip(row) {
                *width = text.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::from(indent);
            for (column, (paint, text)) in row.iter().enumerate() {
                line.push_str(&style.paint(*paint, text));
                if column + 1 < row.len() {
                    line.push_str(&" ".repeat(widths[column] - text.chars().count() + 2));
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A length of time in two units at most: `12ms`, `3.4s`, `2m05s`, `3h20m`, `4d7h`.
pub(super) fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{}h", s / 86_400, s / 3600 % 24),
    }
}

/// Bytes in binary units: `712B`, `1.4K`, `22M`.
pub(super) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = "BKMGTP".chars().peekable();
    let mut unit = units.next();
    while value >= 999.5 && units.peek().is_some() {
        value /= 1024.0;
        unit = units.next();
    }
    let decimals = usize::from(unit != Some('B') && value < 9.95);
    format!("{value:.decimals$}{}", unit.unwrap_or('B'))
}

/// A point in time, UTC: `2026-11-23 13:46:04.123Z`.
pub(super) fn timestamp(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}.{:03}Z", ms / 1000 % 60, ms % 1000)
}

/// Year, month and day of a number of days since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year; 146,097 days are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, over and over: 153 in five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_carry_no_codes_without_a_terminal() {
        let mut grid = Grid::with_heading(&["A", "B"]);
        grid.row([(Paint::Good, "long".into()), (Paint::Bad, "x\x1b[2J".into())]);
        let mut out = Vec::new();
        grid.print(&mut out, Style { colours: false, terminal: false }, " ").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), " A     B\n long  x?[2J\n");
        let style = Style { colours: true, terminal: true };
        assert_eq!(style.paint(Paint::Good, "up"), "\x1b[32mup\x1b[0m");
        assert_eq!(style.paint(Paint::Plain, "up"), "up");
    }

    #[test]
    fn lengths_of_time_keep_two_units() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (3450, "3.4s"),
            (125_000, "2m05s"),
            (12_000_000, "3h20m"),
            (371_000_000, "4d7h"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn bytes_fit_into_four_characters() {
        for (n, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0K"),
            (1434, "1.4K"),
            (10_188, "9.9K"),
            (10_240, "10K"),
            (23_068_672, "22M"),
            (u64::MAX, "16384P"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn times_are_calendar_times() {
        for (unix_s, text) in [
            (0, "1970-01-01 00:00:00.007Z"),
            (951_782_400, "2000-02-29 00:00:00.007Z"),
            (1_709_251_199, "2024-02-29 23:59:59.007Z"),
            (1_735_689_599, "2024-12-31 23:59:59.007Z"),
            (1_735_689_600, "2025-01-01 00:00:00.007Z"),
            (4_107_542_400, "2100-03-01 00:00:00.007Z"),
        ] {
            assert_eq!(timestamp(unix_s * 1000 + 7), text);
        }
    }
}
