//! What a hook is told of a node's roles, and what it may miss.
//!
//! A hook is a program that is run when this node has another role in a group. It runs as often as it
//! takes, one run at a time, and takes its time; roles do not wait for it. So changes queue, one of
//! each group at most: a newer one replaces the one that still waits. Every state that a hook wants
//! and that lasts is delivered; one that was over before the hook had time for it is not.

use std::collections::VecDeque;

use crate::election::GroupId;
use crate::heartbeat::{Cause, Role};

/// What a hook is told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A node has another role in a group.
    #[default]
    Role,
    /// Two nodes were Active at the same time and have met.
    SplitBrain,
    /// One of them gave way.
    SplitBrainEnd,
}

impl Kind {
    /// The name under which hooks know it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::SplitBrain => "split-brain",
            Self::SplitBrainEnd => "split-brain-end",
        }
    }
}

/// A node has another role in a group, or there was a split brain about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened; roles that are no others stay the same.
    pub kind: Kind,
    /// The group.
    pub group: GroupId,
    /// Before; what a hook was told last, if it missed something since.
    pub from: Role,
    /// Now.
    pub to: Role,
    /// The group's term.
    pub term: u32,
    /// Why.
    pub cause: Cause,
    /// Why, for people.
    pub reason: String,
}

/// The changes that wait for one hook, oldest first.
#[derive(Debug, Default)]
pub struct Queue {
    roles: Vec<Role>,
    groups: Vec<GroupId>,
    splits: bool,
    waiting: VecDeque<Change>,
}

impl Queue {
    /// For a hook that wants these roles in these groups; in all groups if there are none. And perhaps split brains.
    pub fn new(roles: Vec<Role>, groups: Vec<GroupId>, splits: bool) -> Self {
        Self { roles, groups, splits, waiting: VecDeque::new() }
    }

    /// Something happened. A role that waits of the same group is out of date then if it is another one now.
    pub fn push(&mut self, mut change: Change) {
        let here = self.groups.is_empty() || self.groups.contains(&change.group);
        if change.kind != Kind::Role {
            if self.splits && here {
                self.waiting.push_back(change);
            }
            return;
        }
        let stale = self.waiting.iter().position(|w| w.group == change.group && w.kind == Kind::Role);
        if let Some(stale) = stale.and_then(|at| self.waiting.remove(at)) {
            change.from = stale.from;
        }
        if here && self.roles.contains(&change.to) {
            self.waiting.push_back(change);
        }
    }

    /// The change to run the hook for next.
    pub fn pop(&mut self) -> Option<Change> {
        self.waiting.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Role::{Active, Backup, Fault};

    fn change(group: GroupId, from: Role, to: Role, term: u32) -> Change {
        Change { kind: Kind::Role, group, from, to, term, cause: Cause::Vacant, reason: String::new() }
    }

    fn drain(queue: &mut Queue) -> Vec<Change> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn changes_come_in_their_order_if_there_is_time() {
        let mut queue = Queue::new(vec![Active, Backup], vec![], false);
        let changes =
            [change(0, Backup, Active, 1), change(0, Active, Backup, 1), change(1, Backup, Active, 4)];
        for told in &changes {
            queue.push(told.clone());
            assert_eq!(queue.pop().as_ref(), Some(told));
        }
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn of_each_group_the_last_state_is_told_and_what_came_before_only_as_where_from() {
        let mut queue = Queue::new(vec![Active, Backup, Fault], vec![], false);
        queue.push(change(0, Backup, Active, 1));
        queue.push(change(1, Backup, Active, 7));
        queue.push(change(0, Active, Fault, 1));
        queue.push(change(0, Fault, Backup, 2));
        assert_eq!(drain(&mut queue), [change(1, Backup, Active, 7), change(0, Backup, Backup, 2)]);
    }

    #[test]
    fn a_state_that_is_over_is_not_told_even_if_the_one_after_it_is_not_wanted() {
        let mut queue = Queue::new(vec![Active], vec![], false);
        queue.push(change(0, Backup, Active, 1));
        queue.push(change(0, Active, Backup, 1));
        assert_eq!(drain(&mut queue), []);
        queue.push(change(0, Backup, Active, 2));
        assert_eq!(drain(&mut queue), [change(0, Backup, Active, 2)]);
    }

    #[test]
    fn groups_and_roles_that_are_not_named_are_not_told() {
        let mut queue = Queue::new(vec![Active], vec![1], false);
        queue.push(change(0, Backup, Active, 1));
        queue.push(change(1, Backup, Active, 1));
        queue.push(change(2, Backup, Active, 1));
        assert_eq!(drain(&mut queue), [change(1, Backup, Active, 1)]);
    }

    #[test]
    fn a_split_brain_is_told_beside_roles_to_those_that_want_it() {
        let split = |kind| Change { kind, ..change(0, Active, Active, 3) };
        let told = [split(Kind::SplitBrain), change(0, Active, Backup, 3), split(Kind::SplitBrainEnd)];
        for (splits, expected) in [(true, &told[..]), (false, &told[1..2])] {
            let mut queue = Queue::new(vec![Active, Backup], vec![], splits);
            told.iter().for_each(|change| queue.push(change.clone()));
            assert_eq!(drain(&mut queue), expected);
        }
    }
}
