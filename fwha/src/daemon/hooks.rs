//! Hooks: programs that are run when this node has another role.
//!
//! Each hook has a task of its own, so none waits for another, and no thread of the daemon waits for
//! any. What became of a run ([`super::program`]) is an event.
//!
//! Changes come by way of the [`super::vips`] thread: a hook for `active` runs when the addresses have
//! been announced, one for another role when they are gone.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fwha_proto::hook::{Change, Kind, Queue};
use fwha_proto::time::Time;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::events::EventLog;
use super::names::Names;
use super::program::{Run, Runner};
use crate::config::{Config, Hook};
use crate::sys::clock::KernelClock;

/// The way to the hooks.
#[derive(Clone, Default)]
pub struct Hooks(Vec<(Hook, mpsc::UnboundedSender<Change>)>);

impl Hooks {
    /// Starts a task for every hook, on the present runtime. They end, having run for all that they
    /// were told, when the last clone of this is dropped.
    pub fn start(
        config: &Config,
        clock: KernelClock,
        events: &Arc<EventLog>,
        names: &Arc<Names>,
    ) -> (Self, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        (Self::default().renew(config, clock, events, names, &mut tasks), tasks)
    }

    /// The hooks of another config: those that are the same go on, for others tasks are started.
    pub fn renew(
        &self,
        config: &Config,
        clock: KernelClock,
        events: &Arc<EventLog>,
        names: &Arc<Names>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let mut sender = |hook: &Hook| {
            if let Some((_, sender)) = self.0.iter().find(|(known, _)| known == hook) {
                return sender.clone();
            }
            let (sender, changes) = mpsc::unbounded_channel();
            let task = Task {
                hook: hook.clone(),
                runner: Runner::default(),
                cluster: config.cluster.name.clone(),
                clock,
                events: Arc::clone(events),
                names: Arc::clone(names),
            };
            tasks.spawn(task.run(changes));
            sender
        };
        Self(config.hooks.iter().map(|hook| (hook.clone(), sender(hook))).collect())
    }

    /// Tells every hook.
    pub fn tell(&self, change: &Change) {
        for (_, hook) in &self.0 {
            // A task ends before its senders only when the daemon has no more time for it.
            let _ = hook.send(change.clone());
        }
    }
}

/// One hook.
struct Task {
    hook: Hook,
    runner: Runner,
    cluster: String,
    clock: KernelClock,
    events: Arc<EventLog>,
    names: Arc<Names>,
}

impl Task {
    async fn run(self, mut changes: mpsc::UnboundedReceiver<Change>) {
        let mut queue = Queue::new(self.hook.on.clone(), self.hook.groups.clone(), self.hook.on_split_brain);
        while let Some(change) = changes.recv().await {
            queue.push(change);
            loop {
                // What comes meanwhile is in the queue before the last of it is told.
                self.runner.free().await;
                while let Ok(change) = changes.try_recv() {
                    queue.push(change);
                }
                let Some(change) = queue.pop() else { break };
                let began = Instant::now();
                let outcome = self.execute(&change).await;
                self.record(&change, began.elapsed(), outcome);
            }
        }
    }

    fn record(&self, change: &Change, took: Duration, outcome: io::Result<Option<ExitStatus>>) {
        let took_ms = took.as_secs_f64() * 1e3;
        let outcome = match outcome {
            Ok(Some(status)) if status.success() => format!("done after {took_ms:.0} ms"),
            Ok(Some(status)) => format!("failed after {took_ms:.0} ms: {status}"),
            Ok(None) => format!("killed after {took_ms:.0} ms: it took too long"),
            Err(error) => format!("{} cannot be run: {error}", self.hook.command[0]),
        };
        let what = if change.kind == Kind::Role { change.to.as_str() } else { change.kind.as_str() };
        let text = format!("{} for {what}: {outcome}", self.hook.name);
        let group = self.names.group(change.group);
        self.events.record(Time::from_nanos(self.clock.now_ns()), "hook", Some(group), text, Vec::new());
    }

    /// One run, to its end or to that of its time (`None`).
    async fn execute(&self, change: &Change) -> io::Result<Option<ExitStatus>> {
        let (term, group) = (change.term.to_string(), self.names.group(change.group));
        let variables = [
            ("FWHA_HOOK", self.hook.name.as_str()),
            ("FWHA_CLUSTER", &self.cluster),
            ("FWHA_NODE", self.names.me()),
            ("FWHA_GROUP", group),
            ("FWHA_EVENT", change.kind.as_str()),
            ("FWHA_FROM", change.from.as_str()),
            ("FWHA_ROLE", change.to.as_str()),
            ("FWHA_TERM", &term),
            ("FWHA_CAUSE", &change.reason),
        ];
        let event = json!({
            "hook": self.hook.name,
            "cluster": self.cluster,
            "node": self.names.me(),
            "group": group,
            "event": change.kind.as_str(),
            "from": change.from.as_str(),
            "role": change.to.as_str(),
            "term": change.term,
            "cause": change.reason,
            "at_unix_ms": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64),
        });
        let run = Run {
            command: &self.hook.command,
            variables: &variables,
            input: Some(format!("{event}\n")),
            timeout: self.hook.timeout,
        };
        self.runner.run(run).await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use fwha_proto::heartbeat::{Cause, Role};

    use super::*;
    use crate::config::tests::good_config;
    use crate::testing::root;

    fn change(from: Role, to: Role, term: u32) -> Change {
        Change {
            kind: Kind::Role,
            group: 0,
            from,
            to,
            term,
            cause: Cause::Vacant,
            reason: "nobody was active".into(),
        }
    }

    /// A hook that runs `script` by the shell.
    fn script(dir: &Path, script: &str, timeout_ms: u64) -> Hook {
        let path = dir.join("hook");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Hook {
            name: "notify".into(),
            command: vec![path.display().to_string(), "$HOME;".into()],
            on: vec![Role::Active, Role::Backup],
            on_split_brain: true,
            groups: Vec::new(),
            timeout: Duration::from_millis(timeout_ms),
        }
    }

    /// Runs a hook for changes that all come at once, to its end; the events.
    async fn told(hook: Hook, changes: &[Change]) -> Vec<String> {
        let mut config = good_config();
        config.hooks = vec![hook];
        let events = Arc::new(EventLog::default());
        let names = Arc::new(Names::new(&config, 1));
        let (hooks, tasks) = Hooks::start(&config, KernelClock::new().unwrap(), &events, &names);
        changes.iter().for_each(|change| hooks.tell(change));
        drop(hooks);
        tasks.join_all().await;
        events.follow().0.iter().map(|event| event.text.clone()).collect()
    }

    #[tokio::test]
    async fn a_hook_gets_the_event_and_no_shell_sees_it() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let write = format!(
            "{{ echo \"$1 $FWHA_GROUP $FWHA_FROM $FWHA_ROLE $FWHA_TERM $FWHA_CAUSE\"; cat; }} > {}",
            out.display()
        );
        let events = told(script(dir.path(), &write, 20_000), &[change(Role::Backup, Role::Active, 7)]).await;
        assert!(events.len() == 1 && events[0].starts_with("notify for active: done after "), "{events:?}");
        let out = fs::read_to_string(out).unwrap();
        let (variables, event) = out.split_once('\n').unwrap();
        assert_eq!(variables, "$HOME; gateway backup active 7 nobody was active");
        let event: serde_json::Value = serde_json::from_str(event).unwrap();
        assert_eq!(
            (&event["role"], &event["term"], &event["node"]),
            (&json!("active"), &json!(7), &json!("fw1"))
        );
    }

    #[tokio::test]
    async fn a_hook_that_fails_hangs_or_is_not_there_is_told_and_the_last_state_comes_all_the_same() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // The child of a run is killed with it: it would hold the output open and end last.
        let runs = dir.path().join("runs");
        let hang =
            format!("echo $FWHA_TERM >> {}; [ $FWHA_TERM = 1 ] || exit 3; sleep 60 & wait", runs.display());
        let began = Instant::now();
        let hook = script(dir.path(), &hang, 300);
        let first = [change(Role::Backup, Role::Active, 1)];
        let events = told(hook.clone(), &first).await;
        assert!(
            events.len() == 1 && events[0].starts_with("notify for active: killed after 3"),
            "{events:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(50));

        let flapping = [
            change(Role::Backup, Role::Active, 2),
            change(Role::Active, Role::Backup, 2),
            change(Role::Backup, Role::Active, 3),
        ];
        let events = told(hook.clone(), &flapping).await;
        assert!(events.len() == 1 && events[0].ends_with("exit status: 3"), "{events:?}");
        assert_eq!(fs::read_to_string(runs).unwrap(), "1\n3\n");

        fs::set_permissions(&hook.command[0], fs::Permissions::from_mode(0o777)).unwrap();
        let events = told(hook.clone(), &first).await;
        assert!(events[0].ends_with("cannot be run: others than root can write to it"), "{events:?}");
        fs::remove_file(&hook.command[0]).unwrap();
        let events = told(hook, &first).await;
        assert!(events[0].contains("cannot be run: No such file"), "{events:?}");
    }

    #[tokio::test]
    async fn the_last_state_is_told_when_a_run_that_could_not_be_killed_has_ended() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let hook = script(dir.path(), "exit 0", 20_000);
        let config = good_config();
        let events = Arc::new(EventLog::default());
        let runner = Runner::default();
        let task = Task {
            hook,
            runner: runner.clone(),
            cluster: config.cluster.name.clone(),
            clock: KernelClock::new().unwrap(),
            events: Arc::clone(&events),
            names: Arc::new(Names::new(&config, 1)),
        };
        let (sender, changes) = mpsc::unbounded_channel();
        let stuck = runner.stuck().await;
        let task = tokio::spawn(task.run(changes));
        sender.send(change(Role::Backup, Role::Active, 1)).unwrap();
        sender.send(change(Role::Active, Role::Backup, 1)).unwrap();
        tokio::task::yield_now().await;
        drop(stuck);
        drop(sender);
        task.await.unwrap();
        let told: Vec<String> = events.follow().0.iter().map(|event| event.text.clone()).collect();
        assert!(told.len() == 1 && told[0].starts_with("notify for backup: done after "), "{told:?}");
    }
}
