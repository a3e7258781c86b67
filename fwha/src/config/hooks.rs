//! `[[hook]]`: programs that are run when this node has another role.

use std::{path::Path, time::Duration};

use fwha_proto::{heartbeat::Role, hook::Kind};

use super::{
    GroupId,
    groups::Group,
    names::Names,
    section::{self, Section},
    source::Mistakes,
    value,
};

/// Roles that a hook can be run for; `init` is over before anything could run.
const ROLES: [Role; 4] = [Role::Active, Role::Backup, Role::Fault, Role::Standby];

/// What stands for a split brain beside roles.
const SPLIT_BRAIN: &str = Kind::SplitBrain.as_str();

/// A `[[hook]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// The program, an absolute path, and its arguments.
    pub command: Vec<String>,
    /// The roles for which it is run.
    pub on: Vec<Role>,
    /// It is run for a split brain, too, and for its end.
    pub on_split_brain: bool,
    /// The groups for which it is run; all if there are none.
    pub groups: Vec<GroupId>,
    /// How long a run may take, 100 ms to 5 m.
    pub timeout: Duration,
}

pub(super) fn read<'a>(root: &mut Section<'a>, groups: &[Group], mistakes: &mut Mistakes) -> Vec<Hook> {
    let mut names = Names::new("hook");
    let mut hooks = Vec::new();
    for mut section in section::array_of_tables(root, "hook", "[[hook]]", mistakes) {
        let name = names.read(&mut section, mistakes);
        let command = read_command(&mut section, mistakes);
        let (on, on_split_brain) = read_on(&mut section, mistakes);
        let groups = read_groups(&mut section, groups, mistakes);
        let range = Duration::from_millis(100)..=Duration::from_secs(300);
        let timeout = section.duration("timeout", range, mistakes);
        let timeout = timeout.map_or(Duration::from_secs(10), |timeout| timeout.into_inner());
        section.finish(mistakes);
        hooks.push(Hook { name, command, on, on_split_brain, groups, timeout });
    }
    hooks
}

pub(super) fn read_command(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Vec<String> {
    read_command_of(section, "command", mistakes)
}

/// The command line under `key`.
pub(super) fn read_command_of(
    section: &mut Section<'_>,
    key: &'static str,
    mistakes: &mut Mistakes,
) -> Vec<String> {
    const REMEDY: &str = "like [\"/usr/local/sbin/on-role\", \"argument\"]; no shell is involved";
    let Some(value) = section.require(key, mistakes) else { return Vec::new() };
    let Some(items) = section::list(value, key, mistakes) else { return Vec::new() };
    let words = section::strings(items, key, mistakes);
    match words.first() {
        None => mistakes.add(value.span(), format!("{key} is empty")).remedy(REMEDY),
        Some(program) if !Path::new(program.get_ref()).is_absolute() => {
            mistakes
                .add(program.span(), format!("{key} {:?} is not an absolute path", program.get_ref()))
                .remedy(REMEDY);
        }
        Some(_) => {}
    }
    words.into_iter().map(|word| (*word.get_ref()).to_owned()).collect()
}

fn read_on(section: &mut Section<'_>, mistakes: &mut Mistakes) -> (Vec<Role>, bool) {
    let Some(items) = section.list("on", mistakes) else { return (ROLES.to_vec(), false) };
    let known: Vec<&str> = ROLES.iter().map(|role| role.as_str()).chain([SPLIT_BRAIN]).collect();
    let (mut roles, mut split_brain) = (Vec::new(), false);
    for word in section::strings(items, "on", mistakes) {
        match ROLES.iter().find(|role| role.as_str() == *word.get_ref()) {
            Some(role) => roles.push(*role),
            None if *word.get_ref() == SPLIT_BRAIN => split_brain = true,
            None => mistakes
                .add(word.span(), format!("unknown role {:?}", word.get_ref()))
                .remedy(value::suggest(word.get_ref(), &known)),
        }
    }
    (roles, split_brain)
}

pub(super) fn read_groups(
    section: &mut Section<'_>,
    groups: &[Group],
    mistakes: &mut Mistakes,
) -> Vec<GroupId> {
    let known: Vec<&str> = groups.iter().map(|g| g.name.as_str()).collect();
    let mut found = Vec::new();
    for word in section
        .list("groups", mistakes)
        .map(|items| section::strings(items, "groups", mistakes))
        .unwrap_or_default()
    {
        match groups.iter().find(|g| g.name == *word.get_ref()) {
            Some(group) => found.push(group.id),
            None => mistakes
                .add(word.span(), format!("unknown group {:?}", word.get_ref()))
                .remedy(value::suggest(word.get_ref(), &known)),
        }
    }
    found
}
