//! The config file as text, and mistakes in it: each with its place and its remedy.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A place in the file: a range of byte offsets.
pub type Span = Range<usize>;

/// The text of a config file and where it came from.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Text that is called `path` in messages, and beside which relative paths in it are looked up.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column (both from 1, the column in characters) of a byte offset, and the line.
    fn locate(&self, offset: usize) -> (usize, usize, &str) {
        let offset = self.text.floor_char_boundary(offset.min(self.text.len()));
        let before = &self.text[..offset];
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = self.text[start..].lines().next().unwrap_or("");
        let number = before.bytes().filter(|&b| b == b'\n').count() + 1;
        (number, self.text[start..offset].chars().count() + 1, line)
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is; `None` for the file as a whole.
    pub span: Option<Span>,
    /// What is wrong, lower case, naming the object.
    pub message: String,
    /// What would mend it.
    pub remedy: Option<String>,
}

impl Mistake {
    /// Says what would mend it.
    pub fn remedy(&mut self, remedy: impl Into<String>) {
        self.remedy = Some(remedy.into());
    }
}

/// Mistakes as they are found.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Notes a mistake at `span`.
    pub(super) fn add(&mut self, span: Span, message: impl Into<String>) -> &mut Mistake {
        self.push(Mistake { span: Some(span), message: message.into(), remedy: None })
    }

    /// Notes a mistake of the file as a whole: something is missing.
    pub(super) fn add_global(&mut self, message: impl Into<String>) -> &mut Mistake {
        self.push(Mistake { span: None, message: message.into(), remedy: None })
    }

    fn push(&mut self, mistake: Mistake) -> &mut Mistake {
        self.0.push(mistake);
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything found, in the order of the file.
    pub(super) fn into_errors(mut self, source: Arc<Source>) -> ConfigErrors {
        self.0.sort_by_key(|m| m.span.as_ref().map_or(usize::MAX, |s| s.start));
        self.0.dedup();
        ConfigErrors { source, mistakes: self.0 }
    }
}

/// Mistakes shown at most: a file with more is not a config file, and the first ones say so.
const SHOWN_MAX: usize = 100;

/// Everything that is wrong with a config file, in the order of the file. `Display` prints each as
///
/// ```text
/// fwha.toml:3:1: unknown key "key-fil" in [cluster]
///   |
/// 3 | key-fil = "cluster.key"
///   | ^^^^^^^ did you mean "key-file"?
/// ```
#[derive(Debug)]
pub struct ConfigErrors {
    source: Arc<Source>,
    mistakes: Vec<Mistake>,
}

impl ConfigErrors {
    /// The mistakes; at least one.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// The first line of each mistake: `file:line:column: message`.
    pub fn headlines(&self) -> impl Iterator<Item = String> + '_ {
        self.mistakes.iter().map(|m| self.headline(m))
    }

    fn headline(&self, mistake: &Mistake) -> String {
        let path = self.source.path.display();
        match &mistake.span {
            Some(span) => {
                let (line, column, _) = self.source.locate(span.start);
                format!("{path}:{line}:{column}: {}", mistake.message)
            }
            None => format!("{path}: {}", mistake.message),
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.mistakes.iter().enumerate() {
            if i == SHOWN_MAX {
                return write!(f, "\n… and {} more", self.mistakes.len() - SHOWN_MAX);
            }
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.headline(mistake))?;
            let remedy = mistake.remedy.as_deref().unwrap_or("");
            let Some(span) = &mistake.span else {
                if !remedy.is_empty() {
                    write!(f, "\n  {remedy}")?;
                }
                continue;
            };
            let (number, column, line) = self.source.locate(span.start);
            let number = number.to_string();
            let gutter = " ".repeat(number.len());
            let shown = line.replace(char::is_control, " ");
            let marked = self.source.text.get(span.clone()).unwrap_or("");
            let carets = marked.lines().next().unwrap_or("").chars().count().max(1);
            let indent = " ".repeat(column - 1);
            let mark = format!("{indent}{} {remedy}", "^".repeat(carets));
            write!(f, "\n{gutter} |\n{number} | {shown}\n{gutter} | {}", mark.trim_end())?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
