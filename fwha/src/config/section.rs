//! Typed reading of TOML tables. Whatever does not fit is noted and reading goes on, so that one run
//! shows every mistake in the file.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    source::{Mistakes, Span},
    value,
};

/// A value as the parser left it.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// A table while it is read. The keys asked for are the keys it may have: [`Section::finish`] notes
/// all others.
pub(super) struct Section<'a> {
    /// How messages call it: `[cluster]`, `[[node]]`.
    pub(super) title: &'static str,
    /// Where it is: its header, or the whole inline table.
    pub(super) span: Span,
    table: &'a DeTable<'a>,
    known: BTreeSet<&'static str>,
}

#[cfg(test)]
std::thread_local! {
    /// Every key that was asked for in this thread, and the table.
    pub(super) static ASKED: std::cell::RefCell<BTreeSet<(&'static str, &'static str)>> = const { std::cell::RefCell::new(BTreeSet::new()) };
}

impl<'a> Section<'a> {
    /// Begins to read `table`.
    pub(super) fn new(title: &'static str, span: Span, table: &'a DeTable<'a>) -> Self {
        Self { title, span, table, known: BTreeSet::new() }
    }

    /// The value of `key`, of any type.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Value<'a>> {
        self.known.insert(key);
        #[cfg(test)]
        ASKED.with_borrow_mut(|asked| _ = asked.insert((self.title, key)));
        self.table.get(key)
    }

    /// The value of `key`; its absence is a mistake.
    pub(super) fn require(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<&'a Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            mistakes.add(self.span.clone(), format!("{} has no {key:?}", self.title));
        }
        value
    }

    /// An optional string.
    pub(super) fn string(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<Spanned<&'a str>> {
        self.get(key).and_then(|v| string(v, key, mistakes))
    }

    /// A string that must be there.
    pub(super) fn required_string(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes,
    ) -> Option<Spanned<&'a str>> {
        self.require(key, mistakes).and_then(|v| string(v, key, mistakes))
    }

    /// An optional boolean.
    pub(super) fn boolean(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<bool> {
        let value = self.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            wrong_type(value, key, "true or false", mistakes);
        }
        found
    }

    /// An optional integer within `range`.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        mistakes: &mut Mistakes,
    ) -> Option<u64> {
        self.get(key).and_then(|v| integer(v, key, range, mistakes))
    }

    /// An optional duration within `range`.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        mistakes: &mut Mistakes,
    ) -> Option<Spanned<Duration>> {
        duration(self.get(key)?, key, range, mistakes)
    }

    /// An optional list; `None` if absent or not a list.
    pub(super) fn list(&mut self, key: &'static str, mistakes: &mut Mistakes) -> Option<&'a [Value<'a>]> {
        self.get(key).and_then(|v| list(v, key, mistakes))
    }

    /// Every key and its value, for a table whose keys are names.
    pub(super) fn entries(
        &self,
    ) -> impl Iterator<Item = (&'a Spanned<DeString<'a>>, &'a Value<'a>)> + use<'a> {
        self.table.iter()
    }

    /// Notes every key that was not asked for.
    pub(super) fn finish(self, mistakes: &mut Mistakes) {
        let known: Vec<&str> = self.known.iter().copied().collect();
        for (key, _) in self.table {
            if !self.known.contains(key.get_ref().as_ref()) {
                mistakes
                    .add(key.span(), format!("unknown key {:?} in {}", key.get_ref(), self.title))
                    .remedy(value::suggest(key.get_ref(), &known));
            }
        }
    }
}

/// The value as a duration like `"10ms"`.
pub(super) fn duration(
    value: &Value<'_>,
    key: &str,
    range: RangeInclusive<Duration>,
    mistakes: &mut Mistakes,
) -> Option<Spanned<Duration>> {
    let DeValue::String(text) = value.get_ref() else {
        wrong_type(value, key, "a duration in quotes, like \"10ms\" or \"5m\"", mistakes);
        return None;
    };
    match value::duration(text) {
        Ok(duration) if range.contains(&duration) => Some(Spanned::new(value.span(), duration)),
        Ok(_) => {
            mistakes.add(value.span(), format!("{key} {text:?} is out of range")).remedy(format!(
                "from {} to {}",
                value::show_duration(*range.start()),
                value::show_duration(*range.end())
            ));
            None
        }
        Err(problem) => {
            mistakes
                .add(value.span(), format!("{key}: {problem}"))
                .remedy("like \"10ms\", \"1s\", \"5m\", \"2h\", \"5d\"");
            None
        }
    }
}

/// Notes that `value` of `key` should be of another type.
pub(super) fn wrong_type(value: &Value<'_>, key: &str, expected: &str, mistakes: &mut Mistakes) {
    let found = value.get_ref().type_str();
    let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
    mistakes
        .add(value.span(), format!("{key} is {article} {found}, not {expected}"))
        .remedy(format!("expected {expected}"));
}

/// `value` as a string.
pub(super) fn string<'a>(
    value: &'a Value<'a>,
    key: &str,
    mistakes: &mut Mistakes,
) -> Option<Spanned<&'a str>> {
    match value.get_ref() {
        DeValue::String(text) => Some(Spanned::new(value.span(), text.as_ref())),
        _ => {
            wrong_type(value, key, "a string", mistakes);
            None
        }
    }
}

/// `value` as an integer within `range`.
pub(super) fn integer(
    value: &Value<'_>,
    key: &str,
    range: RangeInclusive<u64>,
    mistakes: &mut Mistakes,
) -> Option<u64> {
    let DeValue::Integer(number) = value.get_ref() else {
        wrong_type(value, key, "an integer", mistakes);
        return None;
    };
    let parsed = u64::from_str_radix(number.as_str(), number.radix()).ok();
    let found = parsed.filter(|n| range.contains(n));
    if found.is_none() {
        mistakes.add(value.span(), format!("{key} {number} is out of range")).remedy(format!(
            "from {} to {}",
            range.start(),
            range.end()
        ));
    }
    found
}

/// `value` as a list.
pub(super) fn list<'a>(value: &'a Value<'a>, key: &str, mistakes: &mut Mistakes) -> Option<&'a [Value<'a>]> {
    match value.get_ref() {
        DeValue::Array(items) => Some(items),
        _ => {
            wrong_type(value, key, "a list", mistakes);
            None
        }
    }
}

/// The strings of a list; items of another type are noted and left out.
pub(super) fn strings<'a>(
    items: &'a [Value<'a>],
    key: &str,
    mistakes: &mut Mistakes,
) -> Vec<Spanned<&'a str>> {
    items.iter().filter_map(|item| string(item, key, mistakes)).collect()
}

/// The tables of a list (`[[title]]`, or inline); items of another type are noted and left out.
pub(super) fn tables<'a>(
    items: &'a [Value<'a>],
    title: &'static str,
    mistakes: &mut Mistakes,
) -> Vec<Section<'a>> {
    items.iter().filter_map(|item| table(item, title, mistakes)).collect()
}

/// `value` as a table.
pub(super) fn table<'a>(
    value: &'a Value<'a>,
    title: &'static str,
    mistakes: &mut Mistakes,
) -> Option<Section<'a>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(Section::new(title, value.span(), table)),
        _ => {
            wrong_type(value, title, "a table", mistakes);
            None
        }
    }
}

/// The sections `[[key]]` of the file; `title` is how messages call one.
pub(super) fn array_of_tables<'a>(
    root: &mut Section<'a>,
    key: &'static str,
    title: &'static str,
    mistakes: &mut Mistakes,
) -> Vec<Section<'a>> {
    let Some(value) = root.get(key) else { return Vec::new() };
    match value.get_ref() {
        DeValue::Array(items) => tables(items, title, mistakes),
        DeValue::Table(table) => {
            mistakes
                .add(value.span(), format!("[{key}] can be there several times"))
                .remedy(format!("write {title}"));
            // Read it all the same, for the mistakes inside.
            vec![Section::new(title, value.span(), table)]
        }
        _ => {
            wrong_type(value, key, title, mistakes);
            Vec::new()
        }
    }
}
