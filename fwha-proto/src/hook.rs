//! What a hook is told of a node's roles, and what it may miss.
//!
//! A hook is a program that is run when this node has another role in a group. It runs as often as it
//! takes, one run at a time, and takes its time; roles do not wait for it. So changes queue, one of
//! each group at most: a newer one replaces the one that still waits. Every state that a hook wants
//! and that lasts is delivered; one that was over before the hook had time for it is not.

use std::collections::VecDeque;

use crate::election::GroupId;
use crate::heartbeat::{Cause, Role};

/// A node has another role in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
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
    waiting: VecDeque<Change>,
}

impl Queue {
    /// For a hook that wants these roles in these groups; in all groups if there are none.
    pub fn new(roles: Vec<Role>, groups: Vec<GroupId>) -> Self {
        Self { roles, groups, waiting: VecDeque::new() }
    }

    /// A role changed. What waits of the same group is out of date.
    pub fn push(&mut self, mut change: Change) {
        let stale = self.waiting.iter().position(|w| w.group == change.group);
        if let Some(stale) = stale.and_then(|at| self.waiting.remove(at)) {
            change.from = stale.from;
        }
        let wanted = self.groups.is_empty() || self.groups.contains(&change.group);
        if wanted && self.roles.contains(&change.to) {
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
        Change { group, from, to, term, cause: Cause::Vacant, reason: String::new() }
    }

    fn drain(queue: &mut Queue) -> Vec<Change> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn changes_come_in_their_order_if_there_is_time() {
        let mut queue = Queue::new(vec![Active, Backup], vec![]);
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
        let mut queue = Queue::new(vec![Active, Backup, Fault], vec![]);
        queue.push(change(0, Backup, Active, 1));
        queue.push(change(1, Backup, Active, 7));
        queue.push(change(0, Active, Fault, 1));
        queue.push(change(0, Fault, Backup, 2));
        assert_eq!(drain(&mut queue), [change(1, Backup, Active, 7), change(0, Backup, Backup, 2)]);
    }

    #[test]
    fn a_state_that_is_over_is_not_told_even_if_the_one_after_it_is_not_wanted() {
        let mut queue = Queue::new(vec![Active], vec![]);
        queue.push(change(0, Backup, Active, 1));
        queue.push(change(0, Active, Backup, 1));
        assert_eq!(drain(&mut queue), []);
        queue.push(change(0, Backup, Active, 2));
        assert_eq!(drain(&mut queue), [change(0, Backup, Active, 2)]);
    }

    #[test]
    fn groups_and_roles_that_are_not_named_are_not_told() {
        let mut queue = Queue::new(vec![Active], vec![1]);
        queue.push(change(0, Backup, Active, 1));
        queue.push(change(1, Backup, Active, 1));
        queue.push(change(2, Backup, Active, 1));
        assert_eq!(drain(&mut queue), [change(1, Backup, Active, 1)]);
    }
}
