//! Resources: the services of `[[resource]]`, that run where their group is Active.
//!
//! Each group with resources has a task: it does one action at a time, as
//! [`fwha_proto::resource`] says, and no thread of the daemon waits for any. The word comes from the
//! [`super::vips`] thread: resources start when the addresses have been announced, and begin to stop
//! before the addresses are taken away.
//!
//! Addresses never wait for a stop: they are where the role is. Only a move that an operator asks for
//! begins with [`Resources::release`], for a time that is bounded.
//!
//! A failure with `on-fail = "fault"` is a tracker's in the election, one that counts while another
//! node could do better.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use fwha_proto::resource::{Action, Chain, Outcome, Report, State};
use fwha_proto::time::Time;
use fwha_proto::tracker;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::election;
use super::events::EventLog;
use super::mailbox::Mailbox;
use super::names::Names;
use super::program::{Run, Runner};
use crate::config::{Config, GroupId, NodeId, Resource, ResourceService};
use crate::sys::clock::KernelClock;

/// How long a move that an operator asks for waits for resources to stop.
pub const RELEASE_WAIT: Duration = Duration::from_secs(4);
/// The way to systemd.
const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// Is there if systemd is the service manager (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// Exit codes of the OCF Resource Agent API 1.1 that mean more than that something went wrong.
mod ocf {
    pub const SUCCESS: i32 = 0;
    /// `OCF_ERR_ARGS`, `OCF_ERR_UNIMPLEMENTED`, `OCF_ERR_PERM`, `OCF_ERR_INSTALLED`, `OCF_ERR_CONFIGURED`.
    pub const HOPELESS: std::ops::RangeInclusive<i32> = 2..=6;
    pub const NOT_RUNNING: i32 = 7;
    /// `OCF_RUNNING_PROMOTED`.
    pub const PROMOTED: i32 = 8;
}
/// What `systemctl start` says of a unit that there is not (systemctl(1), exit status).
const NO_UNIT: i32 = 5;
/// What `systemctl is-active` says of a unit that does not run, and of one that there is not.
const INACTIVE: [i32; 2] = [3, 4];

/// What a group's task is told.
enum Command {
    /// The group is here, or is not.
    Here(bool),
    /// Stop all, whatever the role; answered when that is done.
    Release(oneshot::Sender<()>),
    /// Follow the role again.
    Restore,
    /// Forget the failures of a resource.
    Clear(String),
    /// Stop all and end.
    End,
}

/// How the resources stand, by name.
type Reports = Mutex<BTreeMap<String, Report>>;

/// The way to the resources.
#[derive(Clone, Default)]
pub struct Resources {
    groups: BTreeMap<GroupId, mpsc::UnboundedSender<Command>>,
    reports: Arc<Reports>,
}

/// What the tasks share.
struct Context {
    cluster: String,
    clock: KernelClock,
    events: Arc<EventLog>,
    names: Arc<Names>,
    election: Mailbox<election::Command>,
    reports: Arc<Reports>,
}

/// Whether the machine has what the resources need of it.
///
/// # Errors
/// Says what is missing.
pub fn check(config: &Config, node: NodeId) -> Result<()> {
    let units = |r: &&Resource| matches!(r.service, ResourceService::Systemd(_));
    if let Some(resource) = config.resources_of(node).find(units)
        && (!Path::new(SYSTEMD_RUNS).is_dir() || !Path::new(SYSTEMCTL).exists())
    {
        bail!(
            "resource {} is a systemd unit, and systemd does not run here ({SYSTEMD_RUNS} or {SYSTEMCTL} is missing): \
             use command or ocf",
            resource.name
        );
    }
    Ok(())
}

/// The program that a resource needs; none for a unit.
pub fn program(resource: &Resource) -> Option<String> {
    match &resource.service {
        ResourceService::Systemd(_) => None,
        ResourceService::Command { start, .. } => start.first().cloned(),
        ResourceService::Ocf { root, provider, agent, .. } => Some(agent_path(root, provider, agent)),
    }
}

fn agent_path(root: &Path, provider: &str, agent: &str) -> String {
    root.join("resource.d").join(provider).join(agent).display().to_string()
}

impl Resources {
    /// Starts a task for every group of the node that has resources, on the present runtime. `resumed` are the
    /// groups that an earlier run of the daemon has left here.
    pub fn start(
        config: &Config,
        node: NodeId,
        resumed: impl Fn(GroupId) -> bool,
        clock: KernelClock,
        events: &Arc<EventLog>,
        names: &Arc<Names>,
        election: &Mailbox<election::Command>,
    ) -> (Self, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let reports = Arc::default();
        let context = Arc::new(Context {
            cluster: config.cluster.name.clone(),
            clock,
            events: Arc::clone(events),
            names: Arc::clone(names),
            election: election.clone(),
            reports: Arc::clone(&reports),
        });
        let mut by_group: BTreeMap<GroupId, Vec<Resource>> = BTreeMap::new();
        for resource in config.resources_of(node) {
            by_group.entry(resource.group).or_default().push(resource.clone());
        }
        let groups = by_group.into_iter().map(|(group, resources)| {
            let (sender, commands) = mpsc::unbounded_channel();
            let here = resumed(group);
            let settings = resources.iter().map(|r| r.settings);
            let chain = Chain::new(context.now(), settings, here);
            let task = Task {
                context: Arc::clone(&context),
                group,
                runners: resources.iter().map(|_| Runner::default()).collect(),
                resources,
                chain,
                here,
                released: Vec::new(),
                held: false,
                ending: false,
            };
            tasks.spawn(task.run(commands));
            (group, sender)
        });
        (Self { groups: groups.collect(), reports }, tasks)
    }

    fn send(&self, group: GroupId, command: Command) {
        // A task ends before its senders only when the daemon has no more time for it.
        let _ = self.groups.get(&group).map(|task| task.send(command));
    }

    /// The group is here with its addresses, or is not.
    pub fn tell(&self, group: GroupId, here: bool) {
        self.send(group, Command::Here(here));
    }

    /// Stops the resources of groups that are about to move, and returns when they have stopped, or after
    /// [`RELEASE_WAIT`]. They follow the role again when the group has gone, or what is returned is dropped.
    pub async fn release(&self, groups: impl IntoIterator<Item = GroupId>) -> Released {
        let groups: Vec<GroupId> = groups.into_iter().filter(|g| self.groups.contains_key(g)).collect();
        let released = Released { resources: self.clone(), groups };
        let stopped = released.groups.iter().map(|&group| {
            let (reply, stopped) = oneshot::channel();
            self.send(group, Command::Release(reply));
            stopped
        });
        let all = futures_util::future::join_all(stopped.collect::<Vec<_>>());
        if tokio::time::timeout(RELEASE_WAIT, all).await.is_err() {
            tracing::warn!("a resource has not stopped in time: its group moves all the same");
        }
        released
    }

    /// Forgets the failures of a resource.
    pub fn clear(&self, resource: &Resource) {
        self.send(resource.group, Command::Clear(resource.name.clone()));
    }

    /// How a resource stands.
    pub fn report(&self, name: &str) -> Option<Report> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Stops all resources and ends the tasks.
    pub fn end(&self) {
        self.groups.keys().for_each(|group| self.send(*group, Command::End));
    }
}

/// Groups whose resources have been stopped for a move.
pub struct Released {
    resources: Resources,
    groups: Vec<GroupId>,
}

impl Released {
    /// The move is done: what the role says is true.
    pub fn moved(mut self) {
        self.groups.clear();
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        self.groups.iter().for_each(|group| self.resources.send(*group, Command::Restore));
    }
}

/// The resources of one group.
struct Task {
    context: Arc<Context>,
    group: GroupId,
    resources: Vec<Resource>,
    /// Who runs what each of them needs.
    runners: Vec<Runner>,
    chain: Chain,
    here: bool,
    /// Whether they are stopped for a move.
    held: bool,
    /// Who waits for that.
    released: Vec<oneshot::Sender<()>>,
    ending: bool,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        self.show();
        loop {
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            let now = self.context.now();
            if self.chain.is_down(now) {
                for reply in self.released.drain(..) {
                    // Whoever waited may have given up.
                    let _ = reply.send(());
                }
                if self.ending {
                    return;
                }
            }
            let Some((index, action)) = self.chain.begin(now) else {
                let due = self.chain.next_timeout().map(|at| Instant::now() + at.since(now));
                let timer = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    command = commands.recv() => self.take(command.unwrap_or(Command::End)),
                    () = timer => {}
                }
                continue;
            };
            self.show();
            let runs = self.chain.report(index).state == State::Running;
            let (resource, runner) = (self.resources[index].clone(), self.runners[index].clone());
            let run = execute(Arc::clone(&self.context), resource, runner, action, runs);
            // What asks may be broken off, what changes something comes to its end.
            let done = if action == Action::Monitor {
                tokio::select! {
                    biased;
                    done = run => Some(done),
                    command = commands.recv() => {
                        self.take(command.unwrap_or(Command::End));
                        None
                    }
                }
            } else {
                Some(run.await)
            };
            match done {
                Some((outcome, text)) => self.done(index, action, outcome, text),
                None => self.chain.interrupted(self.context.now()),
            }
            self.show();
        }
    }

    fn take(&mut self, command: Command) {
        let now = self.context.now();
        match command {
            Command::Here(here) => {
                self.here = here;
                self.held = false;
            }
            Command::Release(reply) => {
                self.held = true;
                self.released.push(reply);
            }
            Command::Restore => self.held = false,
            Command::Clear(name) => {
                if let Some(index) = self.resources.iter().position(|r| r.name == name) {
                    self.chain.clear(now, index);
                    self.record(format!("{name}: its failures are forgotten, an operator said so"));
                    self.show();
                }
            }
            Command::End => self.ending = true,
        }
        self.chain.want(now, self.here && !self.held && !self.ending);
    }

    /// Tells what became of an action, if it is news.
    fn done(&mut self, index: usize, action: Action, outcome: Outcome, text: String) {
        let before = self.chain.report(index).clone();
        self.chain.done(self.context.now(), outcome, text.clone());
        let after = self.chain.report(index);
        let news = match action {
            Action::Start | Action::Stop => true,
            Action::Monitor if outcome == Outcome::Success => before.state == State::Unknown,
            Action::Monitor => before.state == State::Running && before.failure.is_none(),
        };
        let name = &self.resources[index].name;
        if news {
            self.record(format!("{name}: {text}"));
        }
        if after.state == State::Failed && before.state != State::Failed {
            let failure = after.failure.as_deref().unwrap_or_default();
            self.record(format!(
                "{name} has failed: {failure}; `fwhactl resource cleanup {name}` tries it again"
            ));
        }
    }

    fn record(&self, text: String) {
        let group = self.context.names.group(self.group);
        self.context.events.record(self.context.now(), "resource", Some(group), text, Vec::new());
    }

    /// Shows how they stand to `status` and to the election.
    fn show(&self) {
        let mut reports = self.context.reports.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, resource) in self.resources.iter().enumerate() {
            let report = self.chain.report(index);
            reports.insert(resource.name.clone(), report.clone());
            let Some((id, _)) = resource.tracker() else { continue };
            let verdict = self.chain.verdict(index);
            let report = tracker::Report {
                state: verdict,
                since: report.since,
                text: match verdict {
                    tracker::State::Down => report.failure.clone().unwrap_or_default(),
                    tracker::State::Unknown => "failed some time ago, not tried since".into(),
                    tracker::State::Up => report.state.as_str().into(),
                },
                failure: report.failure.clone().unwrap_or_default(),
                bad: report.failures,
                ..tracker::Report::default()
            };
            self.context.election.send(election::Command::Tracker { id, report });
        }
    }
}

impl Context {
    fn now(&self) -> Time {
        Time::from_nanos(self.clock.now_ns())
    }
}

/// Does it, and says what came of it. Whether it `runs` is what was known before.
async fn execute(
    context: Arc<Context>,
    resource: Resource,
    runner: Runner,
    action: Action,
    runs: bool,
) -> (Outcome, String) {
    let began = Instant::now();
    let ended = run(&context, &resource, &runner, action).await;
    let took = format!("{} ms", began.elapsed().as_millis());
    let verb = action.as_str();
    match ended {
        Ok(Some(code)) => {
            let outcome = judge(&resource.service, action, code);
            let text = match outcome {
                Outcome::Success => format!("{verb} done after {took}"),
                Outcome::NotRunning => "it does not run".into(),
                _ => format!(
                    "{verb} failed after {took}: exit code {code}{}",
                    meaning(&resource.service, code)
                ),
            };
            (outcome, text)
        }
        Ok(None) => (Outcome::Failure, format!("{verb} was killed after {took}: it took too long")),
        Err(error) => (unstarted(&error, runs), format!("{verb} cannot be run: {error}")),
    }
}

/// Whether what could not be started can be another time: this machine may be short of processes or memory, and of what
/// `runs` the program may just be replaced by another version.
fn unstarted(error: &io::Error, runs: bool) -> Outcome {
    match (error.kind(), error.raw_os_error()) {
        _ if runs => Outcome::Failure,
        (io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied, _) | (_, Some(libc::ENOEXEC)) => {
            Outcome::Hopeless
        }
        _ => Outcome::Failure,
    }
}

/// One run, to its exit code or the end of its time (`None`).
async fn run(
    context: &Context,
    resource: &Resource,
    runner: &Runner,
    action: Action,
) -> io::Result<Option<i32>> {
    let verb = action.as_str();
    let group = context.names.group(resource.group);
    let mut variables: Vec<(String, String)> = [
        ("FWHA_RESOURCE", resource.name.as_str()),
        ("FWHA_ACTION", verb),
        ("FWHA_CLUSTER", &context.cluster),
        ("FWHA_NODE", context.names.me()),
        ("FWHA_GROUP", group),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let command: Vec<String> = match &resource.service {
        ResourceService::Systemd(unit) => {
            let verb = if action == Action::Monitor { "is-active" } else { verb };
            [SYSTEMCTL, verb, "--quiet", "--no-ask-password", unit].map(str::to_owned).into()
        }
        ResourceService::Command { start, stop, monitor } => match action {
            Action::Start => start.clone(),
            Action::Stop => stop.clone(),
            Action::Monitor => monitor.clone(),
        },
        ResourceService::Ocf { root, provider, agent, parameters } => {
            let timeout_ms = resource.timeout.as_millis().to_string();
            let interval =
                if action == Action::Monitor { resource.settings.interval } else { Duration::ZERO };
            let own = [
                ("OCF_ROOT", root.display().to_string()),
                ("OCF_RA_VERSION_MAJOR", "1".into()),
                ("OCF_RA_VERSION_MINOR", "1".into()),
                ("OCF_RESOURCE_INSTANCE", resource.name.clone()),
                ("OCF_RESOURCE_TYPE", agent.clone()),
                ("OCF_RESOURCE_PROVIDER", provider.clone()),
                ("OCF_CHECK_LEVEL", "0".into()),
                ("OCF_RESKEY_CRM_meta_timeout", timeout_ms),
                ("OCF_RESKEY_CRM_meta_interval", interval.as_millis().to_string()),
            ];
            variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
            let given = parameters.iter().map(|(name, value)| (format!("OCF_RESKEY_{name}"), value.clone()));
            variables.extend(given);
            vec![agent_path(root, provider, agent), verb.to_owned()]
        }
    };
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // What a start or a stop says is for the log.
    let input = (action != Action::Monitor).then(String::new);
    let run = Run { command: &command, variables: &variables, input, timeout: resource.timeout };
    let status = runner.run(run).await?;
    // One that a signal ended has no code.
    Ok(status.map(|status| status.code().unwrap_or(-1)))
}

fn judge(service: &ResourceService, action: Action, code: i32) -> Outcome {
    match (service, action, code) {
        (_, _, ocf::SUCCESS) => Outcome::Success,
        (ResourceService::Systemd(_), Action::Monitor, code) if INACTIVE.contains(&code) => {
            Outcome::NotRunning
        }
        (ResourceService::Systemd(_), Action::Start, NO_UNIT) => Outcome::Hopeless,
        (ResourceService::Systemd(_), Action::Stop, NO_UNIT) => Outcome::Success,
        (ResourceService::Systemd(_), ..) => Outcome::Failure,
        (_, Action::Monitor, ocf::NOT_RUNNING) => Outcome::NotRunning,
        (ResourceService::Ocf { .. }, Action::Monitor, ocf::PROMOTED)
        | (ResourceService::Ocf { .. }, Action::Stop, ocf::NOT_RUNNING) => Outcome::Success,
        (ResourceService::Ocf { .. }, Action::Start | Action::Monitor, code)
            if ocf::HOPELESS.contains(&code) =>
        {
            Outcome::Hopeless
        }
        _ => Outcome::Failure,
    }
}

/// The API's name for an exit code, with a separator.
fn meaning(service: &ResourceService, code: i32) -> &'static str {
    match (service, code) {
        (ResourceService::Ocf { .. }, 1) => " (generic error)",
        (ResourceService::Ocf { .. }, 2) => " (invalid arguments)",
        (ResourceService::Ocf { .. }, 3) => " (unimplemented)",
        (ResourceService::Ocf { .. }, 4) => " (insufficient privileges)",
        (ResourceService::Ocf { .. }, 5) => " (not installed)",
        (ResourceService::Ocf { .. }, 6) => " (not configured)",
        (ResourceService::Systemd(_), NO_UNIT) => " (no such unit)",
        (_, -1) => " (ended by a signal)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::good_config;

    fn command() -> ResourceService {
        let line = || vec!["/bin/true".to_owned()];
        ResourceService::Command { start: line(), stop: line(), monitor: line() }
    }

    fn agent() -> ResourceService {
        ResourceService::Ocf {
            root: "/usr/lib/ocf".into(),
            provider: "heartbeat".into(),
            agent: "IPsrcaddr".into(),
            parameters: BTreeMap::new(),
        }
    }

    #[test]
    fn exit_codes_mean_what_their_api_says() {
        use Action::{Monitor, Start, Stop};
        use Outcome::{Failure, Hopeless, NotRunning, Success};
        let unit = ResourceService::Systemd("a.service".into());
        for (service, action, code, outcome) in [
            (agent(), Start, 0, Success),
            (agent(), Start, 1, Failure),
            (agent(), Start, 5, Hopeless),
            (agent(), Start, 7, Failure),
            (agent(), Stop, 7, Success),
            (agent(), Stop, 2, Failure),
            (agent(), Monitor, 0, Success),
            (agent(), Monitor, 1, Failure),
            (agent(), Monitor, 6, Hopeless),
            (agent(), Monitor, 7, NotRunning),
            (agent(), Monitor, 8, Success),
            (agent(), Monitor, 9, Failure),
            (agent(), Monitor, -1, Failure),
            (command(), Start, 5, Failure),
            (command(), Monitor, 7, NotRunning),
            (command(), Monitor, 3, Failure),
            (command(), Stop, 7, Failure),
            (unit.clone(), Monitor, 3, NotRunning),
            (unit.clone(), Monitor, 4, NotRunning),
            (unit.clone(), Monitor, 1, Failure),
            (unit.clone(), Start, 5, Hopeless),
            (unit.clone(), Start, 1, Failure),
            (unit, Stop, 5, Success),
        ] {
            assert_eq!(judge(&service, action, code), outcome, "{service:?} {action:?} {code}");
        }
    }

    #[test]
    fn what_cannot_be_started_now_may_be_another_time() {
        use io::ErrorKind::{NotFound, PermissionDenied, ResourceBusy};
        for (error, runs, outcome) in [
            (NotFound.into(), false, Outcome::Hopeless),
            (PermissionDenied.into(), false, Outcome::Hopeless),
            (io::Error::from_raw_os_error(libc::ENOEXEC), false, Outcome::Hopeless),
            (NotFound.into(), true, Outcome::Failure),
            (ResourceBusy.into(), false, Outcome::Failure),
            (io::Error::from_raw_os_error(libc::EAGAIN), false, Outcome::Failure),
            (io::Error::from_raw_os_error(libc::EMFILE), false, Outcome::Failure),
        ] {
            assert_eq!(unstarted(&error, runs), outcome, "{error}");
        }
    }

    fn resource(service: ResourceService) -> Resource {
        let settings = fwha_proto::resource::Settings {
            on_fail: Default::default(),
            interval: Duration::ZERO,
            restarts: 0,
            window: Duration::from_secs(1),
            retry_after: Duration::ZERO,
        };
        Resource { name: "vpn".into(), group: 0, service, timeout: Duration::from_secs(1), settings }
    }

    #[test]
    fn a_unit_without_systemd_is_named_and_other_resources_need_none() {
        let mut config = good_config();
        config.resources = vec![resource(command()), resource(agent())];
        check(&config, 1).unwrap();
        config.resources.push(resource(ResourceService::Systemd("vpn.service".into())));
        check(&config, 3).unwrap();
        if Path::new(SYSTEMD_RUNS).is_dir() {
            return;
        }
        let error = check(&config, 1).unwrap_err().to_string();
        assert!(
            error.starts_with("resource vpn is a systemd unit, and systemd does not run here"),
            "{error}"
        );
    }

    #[test]
    fn an_agent_is_found_by_its_provider_and_type() {
        let path = program(&resource(agent()));
        assert_eq!(path.as_deref(), Some("/usr/lib/ocf/resource.d/heartbeat/IPsrcaddr"));
    }
}
