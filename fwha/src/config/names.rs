//! Names of one kind (nodes, zones, groups, rules): each once, and looked up by others.

use std::collections::HashMap;

use toml::Spanned;

use super::{section::Section, source::Mistakes, value};

/// The names of one kind in the order of the file.
#[derive(Debug)]
pub(super) struct Names<'a> {
    kind: &'static str,
    list: Vec<Option<&'a str>>,
    places: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    /// No names yet. `kind` is the word that messages use.
    pub(super) fn new(kind: &'static str) -> Self {
        Self { kind, list: Vec::new(), places: HashMap::new() }
    }

    /// Reads the name of the next section. Whatever is wrong with it, it has its place in the order.
    pub(super) fn read(&mut self, section: &mut Section<'a>, mistakes: &mut Mistakes) -> String {
        let found = section.required_string("name", mistakes);
        let Some(name) = found else {
            self.list.push(None);
            return String::new();
        };
        let text = *name.get_ref();
        if let Err(problem) = value::name(text) {
            mistakes.add(name.span(), format!("{}: {problem}", self.kind));
        } else if self.places.contains_key(text) {
            mistakes
                .add(name.span(), format!("{} {text:?} is there twice", self.kind))
                .remedy("each name may be used once");
        }
        self.places.entry(text).or_insert(self.list.len());
        self.list.push(Some(text));
        text.to_owned()
    }

    /// The place of `name` in the order, from 0. A name that is not there is a mistake.
    pub(super) fn find(&self, name: &Spanned<&str>, mistakes: &mut Mistakes) -> Option<usize> {
        let text = *name.get_ref();
        let found = self.places.get(text).copied();
        if found.is_none() {
            self.unknown(text, name.span(), &[], mistakes);
        }
        found
    }

    /// Notes that `text` is none of the names, nor one of `more`.
    pub(super) fn unknown(&self, text: &str, span: super::Span, more: &[&str], mistakes: &mut Mistakes) {
        let known: Vec<&str> = self.list.iter().flatten().chain(more).copied().collect();
        mistakes.add(span, format!("unknown {} {text:?}", self.kind)).remedy(value::suggest(text, &known));
    }

    /// The name at `index`.
    pub(super) fn name(&self, index: usize) -> &'a str {
        self.list.get(index).copied().flatten().unwrap_or("?")
    }
}
