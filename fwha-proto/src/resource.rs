//! Resources: services that run where a group is Active.
//!
//! A [`Chain`] holds the resources of one group in their order, and says what is to be done next, one
//! action at a time, until what is there is what is wanted. What is wanted may change as often as it
//! likes: nothing queues, and the last word is what everything ends with.
//!
//! ```text
//!            monitor: runs                 a monitor or start fails
//!  Unknown ----------------> Running ------------------------------> Broken
//!   |   ^                       ^                                       |
//!   |   | a stop fails          | start                                 | stop
//!   |   '---- Running, Broken   |                                       |
//!   |                           |                                       |
//!   '---------------------> Stopped <-----------------------------------'
//!     monitor: does not run
//! ```
//! What a resource does at the beginning is not known, so it is asked, and not started a second time.
//! Resources start in their order, each when the one before it runs, and stop in reverse. One that
//! cannot be stopped holds up no other; it is tried again.
//!
//! A failure is mended by a stop and a start. More than [`Settings::restarts`] of them within
//! [`Settings::window`] are too many: the resource has *failed* and stays stopped, until
//! [`Settings::retry_after`] has passed or somebody [clears](Chain::clear) it. That time has passed does not say that it
//! would run: until it has run again, nobody knows.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;
use crate::tracker;

/// Until a stop that failed is tried again.
pub const STOP_RETRY: Duration = Duration::from_secs(10);

/// What the failure of a resource means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFail {
    /// It is restarted; when it has failed it stays stopped.
    #[default]
    Restart,
    /// The same, and when it has failed this node may not be Active.
    Fault,
    /// A bad monitor is told and nothing else. Those after it do not wait for it.
    Ignore,
}

/// How a resource is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What its failure means.
    pub on_fail: OnFail,
    /// From one monitor to the next; zero for none.
    pub interval: Duration,
    /// Failures within the window that are mended by a restart.
    pub restarts: u32,
    /// See there.
    pub window: Duration,
    /// After this much a failed one is tried again; zero for never.
    pub retry_after: Duration,
}

/// What is done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes it run.
    Start,
    /// Ends it. One that does not run is fine.
    Stop,
    /// Asks whether it runs.
    Monitor,
}

impl Action {
    /// As the command line of an agent has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Monitor => "monitor",
        }
    }
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; of a monitor: it runs.
    Success,
    /// Of a monitor: it does not run, and that is all.
    NotRunning,
    /// It went wrong.
    Failure,
    /// It went wrong and would again: nothing on this node changes that by itself.
    Hopeless,
}

/// What people are told of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has looked yet, or it could not be stopped.
    Unknown,
    /// Is being started.
    Starting,
    /// Runs.
    Running,
    /// Is being stopped.
    Stopping,
    /// Does not run.
    Stopped,
    /// Does not run, or not as it should, and is left alone.
    Failed,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Unknown, Self::Starting, Self::Running, Self::Stopping, Self::Stopped, Self::Failed];

    /// The name under which users see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// How a resource stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it is.
    pub state: State,
    /// Since when.
    pub since: Time,
    /// What the last action said.
    pub result: String,
    /// What went wrong, as long as it is wrong.
    pub failure: Option<String>,
    /// Starts so far that mended a failure.
    pub restarts: u64,
    /// Actions so far that went wrong.
    pub failures: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Unknown,
    Stopped,
    Running,
    Broken,
}

#[derive(Debug)]
struct Resource {
    settings: Settings,
    condition: Condition,
    /// When it is to be asked next.
    due: Time,
    /// Recent failures.
    recent: VecDeque<Time>,
    /// When it has failed for good.
    failed: Option<Time>,
    /// Whether that is only because it could not be stopped.
    stuck: bool,
    /// Whether it has failed and was not tried since.
    untried: bool,
    /// Whether the next start mends a failure.
    mends: bool,
    report: Report,
}

/// The resources of one group. See the module.
#[derive(Debug)]
pub struct Chain {
    resources: Vec<Resource>,
    wanted: bool,
    busy: Option<(usize, Action)>,
}

impl Chain {
    /// Resources of which nothing is known, and whether they should run.
    pub fn new(now: Time, settings: impl IntoIterator<Item = Settings>, wanted: bool) -> Self {
        let resource = |settings| Resource {
            settings,
            condition: Condition::Unknown,
            due: now,
            recent: VecDeque::new(),
            failed: None,
            stuck: false,
            untried: false,
            mends: false,
            report: Report {
                state: State::Unknown,
                since: now,
                result: String::new(),
                failure: None,
                restarts: 0,
                failures: 0,
            },
        };
        Self { resources: settings.into_iter().map(resource).collect(), wanted, busy: None }
    }

    /// They should run, or should not.
    pub fn want(&mut self, now: Time, wanted: bool) {
        if std::mem::replace(&mut self.wanted, wanted) == wanted {
            return;
        }
        for resource in self.resources.iter_mut().filter(|r| r.condition == Condition::Unknown) {
            resource.due = now;
        }
    }

    /// Forgets the failures of a resource, and looks at it anew: somebody says that it is well.
    pub fn clear(&mut self, now: Time, index: usize) {
        let resource = &mut self.resources[index];
        resource.untried = false;
        resource.recent.clear();
        resource.report.failure = None;
        (resource.failed, resource.stuck) = (None, false);
        resource.due = now;
        if resource.condition == Condition::Stopped {
            resource.condition = Condition::Unknown;
        }
        self.show(now, index);
    }

    /// How a resource stands.
    pub fn report(&self, index: usize) -> &Report {
        &self.resources[index].report
    }

    /// Whether its failure forbids this node to be Active ([`tracker::State::Down`]). Of one that failed and has not run
    /// since this is not known: where it has failed, too, the group does not come back for that it is forgotten here.
    pub fn verdict(&self, index: usize) -> tracker::State {
        let resource = &self.resources[index];
        match resource.settings.on_fail {
            OnFail::Fault if resource.failed.is_some() => tracker::State::Down,
            OnFail::Fault if resource.untried => tracker::State::Unknown,
            _ => tracker::State::Up,
        }
    }

    /// Begins what is to be done now: an action and its resource. It ends with [`Self::done`] or
    /// [`Self::interrupted`]; until then there is nothing else to do.
    pub fn begin(&mut self, now: Time) -> Option<(usize, Action)> {
        if self.busy.is_some() {
            return None;
        }
        for index in 0..self.resources.len() {
            let resource = &mut self.resources[index];
            let retry = resource.settings.retry_after;
            if !retry.is_zero() && resource.failed.is_some_and(|at| now >= at + retry) {
                self.clear(now, index);
                self.resources[index].untried = true;
            }
        }
        self.busy = if self.wanted { self.upwards(now) } else { self.downwards(now) };
        if let Some((index, _)) = self.busy {
            self.show(now, index);
        }
        self.busy
    }

    fn upwards(&self, now: Time) -> Option<(usize, Action)> {
        for (index, resource) in self.resources.iter().enumerate() {
            match resource.condition {
                Condition::Broken => return Some((index, Action::Stop)),
                Condition::Unknown if resource.due <= now => return Some((index, Action::Monitor)),
                Condition::Stopped if resource.failed.is_none() => return Some((index, Action::Start)),
                _ if resource.holds_up_others() => break,
                _ => {}
            }
        }
        let watched = self.resources.iter().enumerate().filter(|(_, r)| r.is_watched() && r.due <= now);
        watched.min_by_key(|(_, r)| r.due).map(|(index, _)| (index, Action::Monitor))
    }

    fn downwards(&self, now: Time) -> Option<(usize, Action)> {
        self.resources.iter().enumerate().rev().find_map(|(index, resource)| match resource.condition {
            Condition::Running | Condition::Broken => Some((index, Action::Stop)),
            Condition::Unknown if resource.due <= now => Some((index, Action::Monitor)),
            _ => None,
        })
    }

    /// When there may be something to do, if nothing happens before.
    pub fn next_timeout(&self) -> Option<Time> {
        let waits =
            if self.wanted { self.resources.iter().position(Resource::holds_up_others) } else { None };
        let due = |(index, r): (usize, &Resource)| {
            let waits = waits.is_some_and(|first| index > first);
            let asked = (r.condition == Condition::Unknown && !waits) || (self.wanted && r.is_watched());
            let retried = r.failed.filter(|_| !r.settings.retry_after.is_zero());
            asked.then_some(r.due).into_iter().chain(retried.map(|at| at + r.settings.retry_after)).min()
        };
        self.resources.iter().enumerate().filter_map(due).min()
    }

    /// Whether all that can be stopped is stopped.
    pub fn is_down(&self, now: Time) -> bool {
        !self.wanted && self.busy.is_none() && self.downwards(now).is_none()
    }

    /// The action that was begun was broken off.
    pub fn interrupted(&mut self, now: Time) {
        if let Some((index, _)) = self.busy.take() {
            self.show(now, index);
        }
    }

    /// What became of the action that was begun, and in words.
    pub fn done(&mut self, now: Time, outcome: Outcome, text: String) {
        let Some((index, action)) = self.busy.take() else { return };
        let resource = &mut self.resources[index];
        resource.report.result.clone_from(&text);
        resource.due = now + resource.settings.interval;
        match (action, resource.condition, outcome) {
            (Action::Start, _, Outcome::Success) => {
                resource.report.failure = None;
                resource.report.restarts += u64::from(std::mem::take(&mut resource.mends));
                resource.runs();
            }
            (Action::Start, ..) => resource.fail(now, outcome, text),
            (Action::Stop, _, Outcome::Success) => resource.stopped(),
            (Action::Stop, ..) => {
                resource.report.failures += 1;
                resource.report.failure = Some(text);
                resource.stuck |= resource.failed.is_none();
                resource.failed.get_or_insert(now);
                resource.condition = Condition::Unknown;
                resource.due = now + STOP_RETRY;
            }
            // The stop of what was not as it should be has not done it, whatever this says.
            (Action::Monitor, _, Outcome::Success) if resource.stuck && resource.mends => {
                resource.condition = Condition::Broken;
            }
            (Action::Monitor, condition, Outcome::Success) => {
                if self.wanted && std::mem::take(&mut resource.stuck) {
                    resource.failed = None;
                    resource.report.failure = None;
                }
                if condition == Condition::Running && resource.failed.is_none() {
                    resource.report.failure = None;
                }
                resource.runs();
            }
            (Action::Monitor, Condition::Unknown, Outcome::NotRunning) => resource.stopped(),
            // What is not installed is not there to be stopped.
            (Action::Monitor, Condition::Unknown, Outcome::Hopeless) => {
                resource.fail(now, outcome, text);
                resource.condition = Condition::Stopped;
            }
            (Action::Monitor, Condition::Unknown, Outcome::Failure) => {
                resource.condition = Condition::Broken;
            }
            (Action::Monitor, ..) if resource.settings.on_fail == OnFail::Ignore => {
                resource.report.failures += 1;
                resource.report.failure = Some(text);
            }
            (Action::Monitor, ..) => resource.fail(now, outcome, text),
        }
        self.show(now, index);
    }

    /// Brings what people are told up to date.
    fn show(&mut self, now: Time, index: usize) {
        let busy = self.busy.filter(|(of, _)| *of == index).map(|(_, action)| action);
        let resource = &mut self.resources[index];
        let state = match (busy, resource.condition) {
            _ if resource.failed.is_some() => State::Failed,
            (Some(Action::Start), _) => State::Starting,
            (Some(Action::Stop), _) | (_, Condition::Broken) => State::Stopping,
            (_, Condition::Unknown) => State::Unknown,
            (_, Condition::Stopped) => State::Stopped,
            (_, Condition::Running) => State::Running,
        };
        if resource.report.state != state {
            resource.report.state = state;
            resource.report.since = now;
        }
    }
}

impl Resource {
    fn is_watched(&self) -> bool {
        self.condition == Condition::Running && !self.settings.interval.is_zero()
    }

    /// Whether those after it wait for it.
    fn holds_up_others(&self) -> bool {
        self.condition != Condition::Running && self.settings.on_fail != OnFail::Ignore
    }

    fn runs(&mut self) {
        self.condition = Condition::Running;
        self.untried = false;
    }

    fn stopped(&mut self) {
        self.condition = Condition::Stopped;
        if std::mem::take(&mut self.stuck) {
            self.failed = None;
            self.report.failure = None;
        }
    }

    /// Something went wrong: a stop comes next, and then a start if there are not too many of them.
    fn fail(&mut self, now: Time, outcome: Outcome, text: String) {
        self.report.failures += 1;
        self.report.failure = Some(text);
        self.recent.push_back(now);
        let window = self.settings.window;
        while self.recent.front().is_some_and(|at| now.since(*at) > window) {
            self.recent.pop_front();
        }
        let ignored = self.settings.on_fail == OnFail::Ignore;
        if outcome == Outcome::Hopeless || ignored || self.recent.len() > self.settings.restarts as usize {
            self.failed = Some(now);
        }
        self.mends = true;
        self.condition = Condition::Broken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Monitor, Start, Stop};
    use Outcome::{Failure, Hopeless, NotRunning, Success};

    const INTERVAL: Duration = Duration::from_secs(10);

    fn settings(on_fail: OnFail) -> Settings {
        Settings {
            on_fail,
            interval: INTERVAL,
            restarts: 2,
            window: Duration::from_secs(60),
            retry_after: Duration::from_secs(600),
        }
    }

    /// A chain and its clock.
    struct Rig {
        chain: Chain,
        now: Time,
    }

    impl Rig {
        fn new(on_fail: &[OnFail], wanted: bool) -> Self {
            let now = Time::from_millis(1000);
            Self { chain: Chain::new(now, on_fail.iter().map(|o| settings(*o)), wanted), now }
        }

        /// One that has come up, or gone down.
        fn settled(on_fail: &[OnFail], wanted: bool) -> Self {
            let mut rig = Self::new(on_fail, wanted);
            let mut running = vec![false; on_fail.len()];
            rig.play(|index, action| match action {
                Start => {
                    running[index] = true;
                    Success
                }
                Monitor if !running[index] => NotRunning,
                _ => Success,
            });
            rig
        }

        /// Does what there is to do now, answered by `world`; what that was.
        fn play(&mut self, mut world: impl FnMut(usize, Action) -> Outcome) -> Vec<(usize, Action)> {
            let mut done = Vec::new();
            while let Some((index, action)) = self.chain.begin(self.now) {
                assert_eq!(self.chain.begin(self.now), None, "one at a time");
                done.push((index, action));
                self.chain.done(self.now, world(index, action), format!("{index} {}", action.as_str()));
                assert!(done.len() < 100, "{done:?}");
            }
            done
        }

        fn pass(&mut self, time: Duration) {
            self.now = self.now + time;
        }

        fn want(&mut self, wanted: bool) {
            self.chain.want(self.now, wanted);
        }

        fn is_fault(&self, index: usize) -> bool {
            self.chain.verdict(index) == tracker::State::Down
        }

        fn states(&self) -> Vec<State> {
            (0..self.chain.resources.len()).map(|index| self.chain.report(index).state).collect()
        }
    }

    #[test]
    fn what_is_wanted_starts_in_order_and_stops_in_reverse() {
        let mut rig = Rig::new(&[OnFail::Restart; 2], true);
        let mut running = [false; 2];
        let done = rig.play(|index, action| match action {
            Monitor if !running[index] => NotRunning,
            _ => {
                running[index] = true;
                Success
            }
        });
        assert_eq!(done, [(0, Monitor), (0, Start), (1, Monitor), (1, Start)]);
        assert_eq!(rig.states(), [State::Running; 2]);
        rig.want(false);
        assert!(!rig.chain.is_down(rig.now));
        assert_eq!(rig.play(|_, _| Success), [(1, Stop), (0, Stop)]);
        assert!(rig.chain.is_down(rig.now));
        assert_eq!((rig.states(), rig.chain.next_timeout()), (vec![State::Stopped; 2], None));
    }

    #[test]
    fn what_runs_already_is_left_running_where_wanted_and_stopped_where_not() {
        let mut rig = Rig::new(&[OnFail::Restart; 2], true);
        assert_eq!(rig.play(|_, _| Success), [(0, Monitor), (1, Monitor)]);
        let mut rig = Rig::new(&[OnFail::Restart; 2], false);
        let runs = |index, action| if (index, action) == (0, Monitor) { NotRunning } else { Success };
        assert_eq!(rig.play(runs), [(1, Monitor), (1, Stop), (0, Monitor)]);
    }

    #[test]
    fn the_last_word_counts_however_often_it_changed() {
        let mut rig = Rig::settled(&[OnFail::Restart], false);
        rig.want(true);
        assert_eq!(rig.chain.begin(rig.now), Some((0, Start)));
        assert_eq!(rig.states(), [State::Starting]);
        for wanted in [false, true, false] {
            rig.want(wanted);
        }
        assert!(!rig.chain.is_down(rig.now), "a start is under way");
        rig.chain.done(rig.now, Success, String::new());
        assert_eq!(rig.play(|_, _| Success), [(0, Stop)]);
        for wanted in [true, false] {
            rig.want(wanted);
        }
        assert_eq!(rig.play(|_, _| Success), []);
    }

    #[test]
    fn a_monitor_comes_once_an_interval_and_may_be_broken_off() {
        let mut rig = Rig::settled(&[OnFail::Restart], true);
        assert_eq!(rig.chain.next_timeout(), Some(rig.now + INTERVAL));
        rig.pass(INTERVAL);
        assert_eq!(rig.chain.begin(rig.now), Some((0, Monitor)));
        rig.want(false);
        rig.chain.interrupted(rig.now);
        assert_eq!(rig.play(|_, _| Success), [(0, Stop)]);
    }

    #[test]
    fn failures_are_mended_until_there_are_too_many_within_the_window() {
        let mut rig = Rig::settled(&[OnFail::Fault], true);
        let dies = |_, action| if action == Monitor { NotRunning } else { Success };
        for restarts in 1..=2 {
            rig.pass(INTERVAL);
            assert_eq!(rig.play(dies), [(0, Monitor), (0, Stop), (0, Start)]);
            assert_eq!((rig.states(), rig.chain.report(0).restarts), (vec![State::Running], restarts));
            assert!(!rig.is_fault(0));
        }
        rig.pass(INTERVAL);
        assert_eq!(rig.play(dies), [(0, Monitor), (0, Stop)]);
        assert_eq!(rig.states(), [State::Failed]);
        assert!(rig.is_fault(0));
        assert_eq!(rig.chain.report(0).failure.as_deref(), Some("0 monitor"));
        // Nothing helps but time, or a word.
        rig.pass(Duration::from_secs(599));
        assert_eq!(rig.play(dies), []);
        rig.pass(Duration::from_secs(1));
        assert_eq!(rig.chain.next_timeout(), Some(rig.now));
        assert_eq!(rig.play(dies), [(0, Monitor), (0, Start)]);
        assert!(!rig.is_fault(0));
    }

    #[test]
    fn what_failed_is_not_taken_for_well_because_time_has_passed() {
        use tracker::State::{Down, Unknown, Up};
        let mut rig = Rig::settled(&[OnFail::Fault], false);
        rig.want(true);
        let fails = |_, action| if action == Start { Failure } else { Success };
        assert_eq!(rig.play(fails), [(0, Start), (0, Stop)].repeat(3));
        rig.want(false);
        assert_eq!((rig.play(fails), rig.chain.verdict(0)), (vec![], Down));
        rig.pass(Duration::from_secs(600));
        assert_eq!((rig.play(|_, _| NotRunning), rig.chain.verdict(0)), (vec![(0, Monitor)], Unknown));
        rig.want(true);
        assert_eq!((rig.play(|_, _| Success), rig.chain.verdict(0)), (vec![(0, Start)], Up));

        // Somebody's word is another matter.
        rig.want(false);
        rig.play(|_, _| Success);
        rig.want(true);
        rig.play(fails);
        rig.want(false);
        rig.chain.clear(rig.now, 0);
        assert_eq!(rig.chain.verdict(0), Up);
    }

    #[test]
    fn failures_further_apart_than_the_window_never_add_up() {
        let mut rig = Rig::settled(&[OnFail::Fault], true);
        for _ in 0..10 {
            rig.pass(Duration::from_secs(31));
            let dies = |_, action| if action == Monitor { Failure } else { Success };
            assert_eq!(rig.play(dies), [(0, Monitor), (0, Stop), (0, Start)]);
        }
    }

    #[test]
    fn those_after_a_failed_one_wait_unless_it_is_ignored() {
        let fails = |index, action| match (index, action) {
            (0, Start) => Failure,
            (_, Monitor) => NotRunning,
            _ => Success,
        };
        let mut rig = Rig::new(&[OnFail::Restart; 2], true);
        let tries = [(0, Start), (0, Stop)].repeat(3);
        assert_eq!(rig.play(fails), [vec![(0, Monitor)], tries].concat());
        assert_eq!(rig.states(), [State::Failed, State::Unknown]);
        // Nothing is to be done before the first is tried again.
        assert_eq!(rig.chain.next_timeout(), Some(rig.now + Duration::from_secs(600)));
        rig.chain.clear(rig.now, 0);
        let works = |_, action| if action == Monitor { NotRunning } else { Success };
        assert_eq!(rig.play(works), [(0, Monitor), (0, Start), (1, Monitor), (1, Start)]);

        let mut rig = Rig::new(&[OnFail::Ignore; 2], true);
        assert_eq!(rig.play(fails), [(0, Monitor), (0, Start), (0, Stop), (1, Monitor), (1, Start)]);
        assert_eq!(rig.states(), [State::Failed, State::Running]);
        rig.pass(INTERVAL);
        assert_eq!(rig.play(|_, _| NotRunning), [(1, Monitor)]);
        assert_eq!(rig.states()[1], State::Running, "told, and nothing else");
        assert_eq!(rig.chain.report(1).failure.as_deref(), Some("1 monitor"));
    }

    #[test]
    fn what_cannot_be_stopped_holds_up_no_other_and_is_tried_again() {
        let mut rig = Rig::settled(&[OnFail::Fault; 2], true);
        rig.want(false);
        let hangs = |index, action| if (index, action) == (1, Stop) { Failure } else { Success };
        assert_eq!(rig.play(hangs), [(1, Stop), (0, Stop)]);
        assert_eq!(rig.states(), [State::Stopped, State::Failed]);
        assert!(rig.chain.is_down(rig.now) && rig.is_fault(1));
        rig.pass(STOP_RETRY);
        assert_eq!(rig.chain.next_timeout(), Some(rig.now));
        assert_eq!(rig.play(|_, _| Success), [(1, Monitor), (1, Stop)]);
        assert_eq!((rig.states(), rig.is_fault(1)), (vec![State::Stopped; 2], false));
    }

    #[test]
    fn what_is_to_be_mended_is_stopped_before_it_runs_again() {
        let mut rig = Rig::settled(&[OnFail::Fault], true);
        rig.pass(INTERVAL);
        assert_eq!(rig.play(|_, _| Failure), [(0, Monitor), (0, Stop)]);
        assert!(rig.is_fault(0));
        rig.pass(STOP_RETRY);
        assert_eq!(rig.play(|_, _| Success), [(0, Monitor), (0, Stop), (0, Start)]);
        assert_eq!((rig.states(), rig.is_fault(0)), (vec![State::Running], false));

        // One that was to stop for a move, and is wanted again, is as it should be.
        rig.want(false);
        rig.play(|_, _| Failure);
        rig.want(true);
        assert_eq!(rig.play(|_, _| Success), [(0, Monitor)]);
        assert_eq!((rig.states(), rig.is_fault(0)), (vec![State::Running], false));
        assert_eq!(rig.chain.report(0).failure, None);
    }

    #[test]
    fn what_is_hopeless_is_not_tried_twice() {
        let mut rig = Rig::new(&[OnFail::Fault], false);
        assert_eq!(rig.play(|_, _| Hopeless), [(0, Monitor)]);
        assert!(rig.is_fault(0), "not installed: this node had better not be active");
        let mut rig = Rig::settled(&[OnFail::Fault], false);
        rig.want(true);
        assert_eq!(
            rig.play(|_, action| if action == Start { Hopeless } else { Success }),
            [(0, Start), (0, Stop)]
        );
        assert!(rig.is_fault(0));
    }
}
