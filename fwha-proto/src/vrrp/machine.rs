//! The state machine of one virtual router (RFC 9568, section 6.4), as an adviser.
//!
//! The machine keeps the RFC's timers and says what the RFC would do ([`Want`]). Its owner does that,
//! or knows better, and tells it with [`Machine::become_active`] and [`Machine::become_backup`].
//!
//! ```text
//!              start, priority 255                    Active_Down_Timer fires
//!   (start) ------------------------> Active <------------------------------------ Backup
//!      |                                 |  a better advert: higher priority, or      ^
//!      | start, any other priority       |  the same from a higher address            |
//!      |                                 '--------------------------------------------|
//!      '------------------------------------------------------------------------------'
//! ```
//! The interval that a Backup waits for is the one that the Active advertises, not its own.
//!
//! In version 2 (RFC 3768, section 6) all routers have the same interval, Skew_Time is a part of one
//! second, and a losing advertisement is not answered.

use std::net::IpAddr;
use std::time::Duration;

use super::packet::{Advert, PRIORITY_OWNER, PRIORITY_RELEASE, Version};
use crate::time::Time;

/// What the RFC would do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing.
    Nothing,
    /// Send an advertisement, then call [`Machine::advertised`].
    Advertise,
    /// Become Active: nobody else is.
    Active,
    /// Become Backup: a better router is Active.
    Backup,
}

/// One virtual router at one interface.
#[derive(Clone, Debug)]
pub struct Machine {
    priority: u8,
    v2: bool,
    /// Own interval, sent while Active and waited for until another is learned.
    interval_cs: u16,
    active: bool,
    /// Active_Adver_Interval: what the present Active advertises.
    learned_cs: u16,
    /// Active_Down_Timer; counts in Backup.
    active_down: Time,
    /// Adver_Timer; counts in Active.
    adver: Time,
    heard: Option<Time>,
    /// Since when the present state lasts.
    since: Time,
    advertised: Option<Time>,
}

/// `n` centiseconds.
pub const fn centiseconds(n: u16) -> Duration {
    Duration::from_millis(n as u64 * 10)
}

/// Skew_Time: ((256 - priority) * interval) / 256, without rounding to centiseconds, so that
/// Backups of different priorities never expire together.
pub const fn skew(priority: u8, interval_cs: u16) -> Duration {
    let ns = centiseconds(interval_cs).as_nanos() as u64;
    Duration::from_nanos(ns * (256 - priority as u64) / 256)
}

/// Active_Down_Interval: 3 * interval + [`skew`].
pub const fn active_down_interval(priority: u8, interval_cs: u16) -> Duration {
    Duration::from_nanos(
        (centiseconds(interval_cs).as_nanos() * 3 + skew(priority, interval_cs).as_nanos()) as u64,
    )
}

impl Machine {
    /// A machine in Backup that has heard nothing since `now`.
    pub fn new(now: Time, priority: u8, interval_cs: u16, version: Version) -> Self {
        let mut machine = Self {
            priority,
            v2: version.is_v2(),
            interval_cs,
            active: false,
            learned_cs: interval_cs,
            active_down: Time::NEVER,
            adver: Time::NEVER,
            heard: None,
            since: now,
            advertised: None,
        };
        machine.active_down = now + machine.down_interval(interval_cs);
        machine
    }

    /// Skew_Time, when the Active advertises at `interval_cs`.
    const fn skew(&self, interval_cs: u16) -> Duration {
        // RFC 3768, 6.1: of a second, whatever the interval is.
        skew(self.priority, if self.v2 { 100 } else { interval_cs })
    }

    /// Active_Down_Interval, when the Active advertises at `interval_cs`.
    fn down_interval(&self, interval_cs: u16) -> Duration {
        centiseconds(interval_cs) * 3 + self.skew(interval_cs)
    }

    /// What to do at start: the owner of the addresses does not wait.
    pub const fn start(&self) -> Want {
        if self.priority == PRIORITY_OWNER { Want::Active } else { Want::Nothing }
    }

    /// Takes an advertisement that passed all checks of section 7.1.
    ///
    /// `sender_is_greater` compares primary addresses, unsigned (see [`greater`]). `preempt` is
    /// Preempt_Mode.
    pub fn advert(&mut self, now: Time, advert: &Advert, sender_is_greater: bool, preempt: bool) -> Want {
        let release = advert.priority == PRIORITY_RELEASE;
        if self.active {
            return if release {
                Want::Advertise
            } else if advert.priority > self.priority
                || (advert.priority == self.priority && sender_is_greater)
            {
                Want::Backup
            } else if self.v2 {
                Want::Nothing
            } else {
                // New in RFC 9568: tell the loser at once.
                Want::Advertise
            };
        }
        if release {
            self.heard = None;
            self.active_down = now + self.skew(self.learned_cs);
        } else if !preempt || advert.priority >= self.priority {
            self.heard = Some(now);
            self.learned_cs = advert.interval_cs;
            self.active_down = now + self.down_interval(self.learned_cs);
        }
        Want::Nothing
    }

    /// What the timers ask for at `now`.
    pub fn due(&self, now: Time) -> Want {
        if now < self.next() {
            Want::Nothing
        } else if self.active {
            Want::Advertise
        } else {
            Want::Active
        }
    }

    /// When a timer fires next. In Backup it may lie in the past: nothing was heard since.
    pub const fn next(&self) -> Time {
        if self.active { self.adver } else { self.active_down }
    }

    /// An advertisement was sent: the next is due one interval later.
    pub fn advertised(&mut self, now: Time) {
        self.advertised = Some(now);
        if self.active {
            self.adver = now + centiseconds(self.interval_cs);
        }
    }

    /// The role is taken; the first advertisement is sent now.
    pub fn become_active(&mut self, now: Time) {
        self.active = true;
        self.since = now;
        self.heard = None;
        self.advertised(now);
    }

    /// The role is given up, or was never had: wait for the Active's advertisements, at the
    /// interval `learned_cs` if one is known, else at the configured one, `normal_cs`. The own may be shorter for the moment, and
    /// of whoever is Active that is not known.
    pub fn become_backup(&mut self, now: Time, learned_cs: Option<u16>, normal_cs: u16) {
        self.active = false;
        self.since = now;
        self.heard = learned_cs.map(|_| now);
        self.learned_cs = learned_cs.unwrap_or(normal_cs);
        self.active_down = now + self.down_interval(self.learned_cs);
    }

    /// Changes the interval that is advertised. Says whether an advertisement should go out now, so
    /// that Backups learn of a shorter one before they need it.
    pub fn set_interval(&mut self, interval_cs: u16) -> bool {
        let shorter = interval_cs < self.interval_cs;
        self.interval_cs = interval_cs;
        self.active && shorter
    }

    /// Active: an advertisement is due now, or `at_least` after the last: a flood of losing ones is
    /// not answered one by one.
    pub fn hasten(&mut self, now: Time, at_least: Duration) {
        if self.active {
            let soonest = self.advertised.map_or(now, |at| now.max(at + at_least));
            self.adver = self.adver.min(soonest);
        }
    }

    /// Own interval, centiseconds.
    pub const fn interval_cs(&self) -> u16 {
        self.interval_cs
    }

    /// Own priority.
    pub const fn priority(&self) -> u8 {
        self.priority
    }

    /// Changes the priority; the next advertisement carries it.
    pub const fn set_priority(&mut self, priority: u8) {
        self.priority = priority;
    }

    /// Backup: whether an Active's advertisements arrive, on time by its own interval.
    pub fn hears(&self, now: Time) -> bool {
        !self.active && self.heard.is_some() && now < self.active_down
    }

    /// Backup: when the next advertisement of the Active was to come, if there was one.
    pub fn next_expected(&self) -> Option<Time> {
        self.heard.map(|at| at + centiseconds(self.learned_cs))
    }

    /// Backup: when the silence lasts Active_Down_Interval of an Active that was heard before `from` and would advertise from
    /// then on with at most `interval_cs`, and at once. Of another the interval is the one that it said last, as in version
    /// 2, which has one only: it may have begun anew since, and not know that it is to be quick.
    pub fn silent_at(&self, from: Time, interval_cs: u16) -> Time {
        let start = from.max(self.since).max(self.heard.unwrap_or(Time::ZERO));
        let quick = !self.v2 && self.heard.is_some_and(|at| (self.since..from).contains(&at));
        let interval_cs = if quick { self.learned_cs.min(interval_cs) } else { self.learned_cs };
        self.active_down.min(start + self.down_interval(interval_cs))
    }
}

/// Whether `theirs` is the greater primary address: an unsigned comparison in network byte order.
pub fn greater(theirs: IpAddr, mine: IpAddr) -> bool {
    theirs > mine
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::vrrp::packet::Auth;

    const T: Time = Time::from_millis(10_000);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn advert(priority: u8, interval_cs: u16) -> Advert {
        Advert { vrid: 1, priority, interval_cs, addresses: vec![Ipv4Addr::LOCALHOST.into()] }
    }

    fn backup(priority: u8) -> Machine {
        Machine::new(T, priority, 100, Version::default())
    }

    /// Of version 2, with an interval of 3 s.
    fn backup_v2(priority: u8) -> Machine {
        Machine::new(T, priority, 300, Version::V2 { auth: Auth::None })
    }

    fn active(priority: u8) -> Machine {
        let mut m = backup(priority);
        m.become_active(T);
        m
    }

    #[test]
    fn skew_is_exact_and_different_for_every_priority() {
        assert_eq!(skew(255, 256), ms(10));
        assert_eq!(skew(0, 100), ms(1000));
        assert_eq!(skew(128, 100), ms(500));
        // Whole centiseconds would make all of these zero.
        assert!((1..=255).all(|p| skew(p, 1) < skew(p - 1, 1) && !skew(p, 1).is_zero()));
        assert_eq!(active_down_interval(128, 10), ms(350));
    }

    #[test]
    fn init_the_owner_is_active_at_once_all_others_wait() {
        assert_eq!(backup(255).start(), Want::Active);
        assert_eq!(backup(254).start(), Want::Nothing);
        let m = backup(100);
        let down = active_down_interval(100, 100);
        assert_eq!(m.due(T + down - Duration::from_nanos(1)), Want::Nothing);
        assert_eq!(m.due(T + down), Want::Active);
    }

    #[test]
    fn backup_learns_the_interval_of_the_active() {
        let mut m = backup(100);
        m.advert(T, &advert(150, 10), true, true);
        assert_eq!(m.next(), T + active_down_interval(100, 10));
        m.advert(T + ms(10), &advert(150, 400), true, true);
        assert_eq!(m.next(), T + ms(10) + active_down_interval(100, 400));
    }

    #[test]
    fn backup_takes_priority_zero_as_leave_and_waits_the_skew_only() {
        let mut m = backup(100);
        m.advert(T, &advert(150, 100), true, true);
        assert!(m.hears(T));
        m.advert(T + ms(5), &advert(0, 100), true, true);
        assert_eq!(m.next(), T + ms(5) + skew(100, 100));
        assert!(!m.hears(T + ms(5)));
    }

    #[test]
    fn backup_that_preempts_discards_a_lower_priority_and_keeps_its_timer() {
        let mut m = backup(100);
        m.advert(T + ms(500), &advert(99, 100), true, true);
        assert_eq!(m.next(), T + active_down_interval(100, 100));
        m.advert(T + ms(500), &advert(100, 100), false, true);
        assert_eq!(m.next(), T + ms(500) + active_down_interval(100, 100), "equal is not lower");
    }

    #[test]
    fn backup_that_does_not_preempt_follows_a_lower_priority() {
        let mut m = backup(100);
        m.advert(T + ms(500), &advert(1, 100), true, false);
        assert_eq!(m.next(), T + ms(500) + active_down_interval(100, 100));
    }

    #[test]
    fn active_advertises_at_its_interval() {
        let mut m = active(100);
        assert_eq!(m.due(T + ms(999)), Want::Nothing);
        assert_eq!(m.due(T + ms(1000)), Want::Advertise);
        m.advertised(T + ms(1000));
        assert_eq!(m.next(), T + ms(2000));
    }

    #[test]
    fn active_answers_a_release_with_an_advert() {
        assert_eq!(active(100).advert(T, &advert(0, 100), true, true), Want::Advertise);
    }

    #[test]
    fn active_gives_way_to_a_higher_priority_whatever_preempt_says() {
        for preempt in [false, true] {
            assert_eq!(active(100).advert(T, &advert(101, 100), false, preempt), Want::Backup);
        }
    }

    #[test]
    fn active_gives_way_to_an_equal_priority_only_from_a_greater_address() {
        assert_eq!(active(100).advert(T, &advert(100, 100), true, true), Want::Backup);
        assert_eq!(active(100).advert(T, &advert(100, 100), false, true), Want::Advertise);
    }

    #[test]
    fn active_answers_a_losing_advert_at_once() {
        assert_eq!(active(100).advert(T, &advert(99, 100), true, true), Want::Advertise);
    }

    #[test]
    fn giving_way_adopts_the_interval_of_the_winner() {
        let mut m = active(100);
        m.become_backup(T, Some(10), 100);
        assert_eq!(m.next(), T + active_down_interval(100, 10));
        m.become_backup(T, None, 100);
        assert_eq!(m.next(), T + active_down_interval(100, 100));
    }

    #[test]
    fn addresses_compare_unsigned() {
        let v4 = |a, b| greater(Ipv4Addr::from(a).into(), Ipv4Addr::from(b).into());
        assert!(v4([200, 0, 0, 1], [100, 0, 0, 2]));
        assert!(!v4([10, 0, 0, 1], [10, 0, 0, 1]));
        let v6 = |a: u16, b: u16| {
            let address = |x| Ipv6Addr::new(0xfe80, 0, 0, 0, x, 0, 0, 1).into();
            greater(address(a), address(b))
        };
        assert!(v6(0x8000, 0x7fff));
    }

    #[test]
    fn a_shorter_interval_is_announced_at_once() {
        let mut m = active(100);
        assert!(m.set_interval(10));
        assert!(!m.set_interval(100));
        assert!(!backup(100).set_interval(10));
    }

    #[test]
    fn a_hastened_advert_is_due_at_once_and_in_a_flood_at_a_bounded_rate() {
        let mut m = active(100);
        m.hasten(T + ms(500), ms(10));
        assert_eq!(m.next(), T + ms(500));
        m.advertised(T + ms(500));
        m.hasten(T + ms(501), ms(10));
        assert_eq!(m.next(), T + ms(510));
    }

    /// RFC 3768, 6.1: Skew_Time = (256 - Priority) / 256 s, Master_Down_Interval = 3 * interval + that.
    #[test]
    fn v2_skew_is_a_part_of_a_second() {
        let mut m = backup_v2(128);
        assert_eq!(m.next(), T + ms(9500));
        m.advert(T + ms(10), &advert(150, 300), true, true);
        assert_eq!(m.next(), T + ms(9510));
        m.become_backup(T + ms(20), None, 300);
        assert_eq!(m.next(), T + ms(9520));
    }

    /// RFC 3768, 6.4.2: priority zero sets Master_Down_Timer to Skew_Time.
    #[test]
    fn v2_backup_takes_priority_zero_as_leave_and_waits_the_skew_only() {
        let mut m = backup_v2(128);
        m.advert(T, &advert(0, 300), true, true);
        assert_eq!(m.next(), T + ms(500));
    }

    /// RFC 3768, 6.4.3: a losing advertisement is discarded, priority zero is answered.
    #[test]
    fn v2_active_answers_a_release_alone() {
        let mut m = backup_v2(128);
        m.become_active(T);
        assert_eq!(m.advert(T, &advert(0, 300), true, true), Want::Advertise);
        assert_eq!(m.advert(T, &advert(127, 300), true, true), Want::Nothing);
        assert_eq!(m.advert(T, &advert(128, 300), false, true), Want::Nothing);
        assert_eq!(m.advert(T, &advert(128, 300), true, true), Want::Backup);
        assert_eq!(m.advert(T, &advert(129, 300), false, false), Want::Backup);
    }

    /// Whole seconds cannot be hastened, so silence takes its time.
    #[test]
    fn v2_silence_is_judged_by_its_own_interval() {
        let mut m = backup_v2(128);
        m.advert(T, &advert(150, 300), true, true);
        assert_eq!(m.silent_at(T + ms(20), 10), T + ms(9500));
    }

    #[test]
    fn silence_can_be_judged_by_a_shorter_interval() {
        let mut m = backup(128);
        m.advert(T, &advert(150, 100), true, true);
        assert_eq!(m.silent_at(T + ms(20), 10), T + ms(370));
        m.advert(T + ms(100), &advert(150, 10), true, true);
        assert_eq!(m.silent_at(T + ms(20), 10), T + ms(450));
    }
}
