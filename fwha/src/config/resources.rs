//! `[[resource]]`: services that run where a group is Active.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use fwha_common::rule::name_hash;
use fwha_proto::{
    heartbeat::MAX_TRACKERS,
    resource::{OnFail, Settings},
};
use serde::{Serialize, Serializer};
use toml::{Spanned, de::DeValue};

use super::{
    GroupId,
    groups::Group,
    hooks,
    names::Names,
    section::{self, Section},
    source::Mistakes,
    trackers::Tracker,
    value,
};

/// The keys that say what runs.
const KINDS: [&str; 3] = ["systemd", "command", "ocf"];
/// What may be said by `on-fail`.
const ON_FAIL: [(&str, OnFail); 3] =
    [("restart", OnFail::Restart), ("fault", OnFail::Fault), ("ignore", OnFail::Ignore)];
/// The suffixes of units that can be started and stopped (systemd.unit(5)).
const UNIT_SUFFIXES: [&str; 5] = [".service", ".target", ".mount", ".socket", ".timer"];
const OCF_ROOT: &str = "/usr/lib/ocf";
const TIMEOUT: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_secs(10);
const RESTARTS: u32 = 3;
const WINDOW: Duration = Duration::from_secs(300);
const RETRY_AFTER: Duration = Duration::from_secs(600);

/// A `[[resource]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// The group that it follows.
    pub group: GroupId,
    /// What runs.
    pub service: Service,
    /// How long a start, a stop or a monitor may take, 100 ms to 5 m.
    pub timeout: Duration,
    /// How it is treated.
    #[serde(serialize_with = "settings_text")]
    pub settings: Settings,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Service {
    /// A systemd unit.
    Systemd(String),
    /// Programs, each an absolute path and its arguments.
    Command {
        /// Makes it run.
        start: Vec<String>,
        /// Ends it.
        stop: Vec<String>,
        /// Ends with exit code 0 if it runs, and with 7 if it does not.
        monitor: Vec<String>,
    },
    /// An agent of the OCF Resource Agent API.
    Ocf {
        /// Where agents are: below `resource.d/<provider>/`.
        root: PathBuf,
        /// Its provider.
        provider: String,
        /// Its type.
        agent: String,
        /// Its parameters.
        parameters: BTreeMap<String, String>,
    },
}

/// For the hash of the config: two nodes must agree on all of it.
fn settings_text<S: Serializer>(settings: &Settings, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{settings:?}"))
}

impl Resource {
    /// The tracker by which its failure counts in the election: its number and name, which no `[[tracker]]` can have.
    pub fn tracker(&self) -> Option<(u32, String)> {
        let name = tracker_name(&self.name);
        (self.settings.on_fail == OnFail::Fault).then(|| (name_hash(&name), name))
    }
}

fn tracker_name(resource: &str) -> String {
    format!("resource {resource}")
}

pub(super) fn read<'a>(
    root: &mut Section<'a>,
    groups: &[Group],
    trackers: &[Tracker],
    mistakes: &mut Mistakes,
) -> Vec<Resource> {
    let mut names = Names::new("resource");
    let mut resources: Vec<Resource> = Vec::new();
    let mut room = MAX_TRACKERS.saturating_sub(trackers.len());
    for mut section in section::array_of_tables(root, "resource", "[[resource]]", mistakes) {
        let name = names.read(&mut section, mistakes);
        let span = section.span.clone();
        let resource = read_one(&mut section, name, groups, mistakes);
        section.finish(mistakes);
        if let Some((id, _)) = resource.as_ref().and_then(Resource::tracker) {
            let taken =
                trackers.iter().map(Tracker::id).chain(resources.iter().filter_map(|r| Some(r.tracker()?.0)));
            if taken.into_iter().any(|other| other == id) {
                mistakes
                    .add(span.clone(), "the resource has the hash of another resource or tracker")
                    .remedy("nodes speak of them by it: choose another name");
            }
            match room.checked_sub(1) {
                Some(less) => room = less,
                None => {
                    mistakes.add(
                        span,
                        format!("more than {MAX_TRACKERS} trackers and resources with on-fail = \"fault\""),
                    );
                }
            }
        }
        resources.extend(resource);
    }
    resources
}

fn read_one(
    section: &mut Section<'_>,
    name: String,
    groups: &[Group],
    mistakes: &mut Mistakes,
) -> Option<Resource> {
    let group = read_group(section, groups, mistakes);
    let service = read_service(section, mistakes);
    let range = Duration::from_millis(100)..=Duration::from_secs(300);
    let timeout = section.duration("timeout", range, mistakes).map_or(TIMEOUT, Spanned::into_inner);
    let mut time = |key, least, default| {
        let range = least..=Duration::from_secs(24 * 3600);
        section.duration(key, range, mistakes).map_or(default, Spanned::into_inner)
    };
    let interval = time("interval", Duration::ZERO, INTERVAL);
    let window = time("restart-window", Duration::from_secs(1), WINDOW);
    let retry_after = time("retry-after", Duration::ZERO, RETRY_AFTER);
    let restarts = section.integer("restarts", 0..=100, mistakes).map_or(RESTARTS, |n| n as u32);
    let on_fail = section.string("on-fail", mistakes).map_or(OnFail::default(), |word| {
        let found = ON_FAIL.iter().find(|(known, _)| known == word.get_ref());
        if found.is_none() {
            mistakes
                .add(word.span(), format!("unknown on-fail {:?}", word.get_ref()))
                .remedy(value::suggest(word.get_ref(), &ON_FAIL.map(|(known, _)| known)));
        }
        found.map_or(OnFail::default(), |(_, on_fail)| *on_fail)
    });
    Some(Resource {
        name,
        group: group?,
        service: service?,
        timeout,
        settings: Settings { on_fail, interval, restarts, window, retry_after },
    })
}

fn read_group(section: &mut Section<'_>, groups: &[Group], mistakes: &mut Mistakes) -> Option<GroupId> {
    let word = section.required_string("group", mistakes)?;
    let found = groups.iter().find(|g| g.name == *word.get_ref());
    if found.is_none() {
        let known: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
        mistakes
            .add(word.span(), format!("unknown group {:?}", word.get_ref()))
            .remedy(value::suggest(word.get_ref(), &known));
    }
    found.map(|g| g.id)
}

fn read_service(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Option<Service> {
    let given: Vec<&str> = KINDS.into_iter().filter(|kind| section.get(kind).is_some()).collect();
    let parameters = read_parameters(section, &given, mistakes);
    let root = section.string("ocf-root", mistakes);
    match &root {
        Some(root) if given != ["ocf"] => {
            mistakes.add(root.span(), "ocf-root without ocf").remedy("leave it out");
        }
        Some(root) if !Path::new(root.get_ref()).is_absolute() => {
            mistakes.add(root.span(), format!("ocf-root {:?} is not an absolute path", root.get_ref()));
        }
        _ => {}
    }
    let kind = match given[..] {
        [kind] => kind,
        [] => {
            mistakes
                .add(section.span.clone(), "[[resource]] runs nothing")
                .remedy(format!("it needs one of {}", KINDS.join(", ")));
            return None;
        }
        _ => {
            mistakes
                .add(section.span.clone(), format!("[[resource]] runs {} at once", given.join(" and ")))
                .remedy("make a resource for each");
            return None;
        }
    };
    if kind == "command" {
        let mut command = section::table(section.get(kind)?, "command", mistakes)?;
        let [start, stop, monitor] =
            ["start", "stop", "monitor"].map(|key| hooks::read_command_of(&mut command, key, mistakes));
        command.finish(mistakes);
        return Some(Service::Command { start, stop, monitor });
    }
    let text = section.string(kind, mistakes)?;
    let service = match kind {
        "systemd" => read_unit(text.get_ref()).map(Service::Systemd),
        _ => read_agent(text.get_ref()).map(|(provider, agent)| {
            let root = root.map_or(OCF_ROOT, Spanned::into_inner).into();
            Service::Ocf { root, provider, agent, parameters }
        }),
    };
    service.map_err(|problem| mistakes.add(text.span(), format!("{kind}: {problem}"))).ok()
}

fn read_unit(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | ':' | '\\');
    let suffix = UNIT_SUFFIXES.iter().find(|suffix| text.len() > suffix.len() && text.ends_with(**suffix));
    if !text.chars().all(fits) || text.starts_with('-') || text.len() > 255 {
        Err(format!("{text:?} is not the name of a unit"))
    } else if suffix.is_none() {
        Err(format!("{text:?} has no suffix of a unit, like \".service\""))
    } else {
        Ok(text.into())
    }
}

fn read_agent(text: &str) -> Result<(String, String), String> {
    let bad = |_| format!("{text:?} is not the name of an agent, like \"ocf:heartbeat:IPsrcaddr\"");
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        ["ocf", provider, agent] => {
            Ok((value::name(provider).map_err(bad)?, value::name(agent).map_err(bad)?))
        }
        _ => Err(bad(String::new())),
    }
}

fn read_parameters(
    section: &mut Section<'_>,
    given: &[&str],
    mistakes: &mut Mistakes,
) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    let Some(value) = section.get("parameters") else { return parameters };
    if given != ["ocf"] {
        mistakes.add(value.span(), "parameters without ocf").remedy("only agents have them: leave it out");
    }
    let Some(table) = section::table(value, "parameters", mistakes) else { return parameters };
    for (key, value) in table.entries() {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !key.get_ref().chars().all(fits) {
            mistakes.add(key.span(), format!("{:?} is not the name of a parameter", key.get_ref()));
            continue;
        }
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Boolean(yes) => yes.to_string(),
            _ => {
                section::wrong_type(value, key.get_ref(), "a string, a number, or true or false", mistakes);
                continue;
            }
        };
        if text.contains('\0') {
            mistakes.add(value.span(), "a parameter with a zero byte");
        }
        parameters.insert(key.get_ref().to_string(), text);
    }
    parameters
}
