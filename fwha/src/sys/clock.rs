//! The monotonic clock as BPF programs see it.

use std::{fs, io};

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` of the kernel.
///
/// A process in a time namespace (time_namespaces(7)) sees a shifted `CLOCK_MONOTONIC`, but
/// `bpf_ktime_get_ns` knows no namespaces. Every time that goes into a map or comes from one is of
/// this clock.
#[derive(Clone, Copy, Debug)]
pub struct KernelClock {
    /// What the time namespace adds.
    offset_ns: i64,
}

impl KernelClock {
    /// Reads this process's time namespace offset, which cannot change while it runs.
    ///
    /// # Errors
    ///
    /// `/proc/self/timens_offsets` exists but cannot be read or understood. A kernel without time
    /// namespaces has no such file and no offset.
    pub fn new() -> io::Result<Self> {
        match fs::read_to_string("/proc/self/timens_offsets") {
            Ok(text) => {
                let offset_ns = monotonic_offset(&text)
                    .ok_or_else(|| io::Error::other("/proc/self/timens_offsets: no monotonic offset"))?;
                Ok(Self { offset_ns })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self { offset_ns: 0 }),
            Err(e) => Err(e),
        }
    }

    /// Now, in ns.
    pub fn now_ns(&self) -> u64 {
        now_ns(ClockId::CLOCK_MONOTONIC).saturating_add_signed(-self.offset_ns)
    }
}

/// The wall clock, in ns since 1970. Only for what the kernel stamps with it, and for display.
pub fn wall_ns() -> u64 {
    now_ns(ClockId::CLOCK_REALTIME)
}

fn now_ns(clock: ClockId) -> u64 {
    // Neither clock can be missing, and neither is negative.
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// The line `monotonic <seconds> <nanoseconds>`, in ns.
fn monotonic_offset(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("monotonic"))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i64>);
    let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_the_kernel_prints_them() {
        let text = "monotonic           3        17\nboottime          -86400         0\n";
        assert_eq!(monotonic_offset(text), Some(3_000_000_017));
        assert_eq!(monotonic_offset("monotonic -2 500000000\n"), Some(-1_500_000_000));
        assert_eq!(monotonic_offset("boottime 1 0\n"), None);
        assert_eq!(monotonic_offset("monotonic x 0\n"), None);
    }

    #[test]
    fn the_offset_is_taken_off() {
        let (plain, shifted) = (KernelClock { offset_ns: 0 }, KernelClock { offset_ns: -1_000_000_000_000 });
        let (a, b, c) = (plain.now_ns(), shifted.now_ns(), plain.now_ns());
        assert!(a <= b - 1_000_000_000_000 && b - 1_000_000_000_000 <= c);
    }
}
