//! The kernel that runs, as far as it matters whether fwha's programs can.

use std::fs;

/// The oldest kernel that fwha is tested with (`cargo xtask kernels`): major and minor version. TCX is older (6.6), but the
/// verifiers before this one were never asked.
pub const OLDEST: (u32, u32) = (6, 12);

/// The kernel's release, as `uname -r` prints it; empty if it cannot be read.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Whether a release is older than [`OLDEST`]. One that has no numbers is not.
pub fn is_older(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST)
}

/// Whether the kernel is PREEMPT_RT, which its version says (`uname -v`; the kernel's init/Makefile). There a softirq can be
/// preempted by another on the same CPU, and fwha's programs keep by CPU what they know of a packet.
pub fn is_realtime() -> bool {
    says_realtime(&fs::read_to_string("/proc/sys/kernel/version").unwrap_or_default())
}

fn says_realtime(version: &str) -> bool {
    version.split_whitespace().any(|word| word == "PREEMPT_RT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        for older in ["6.11.0-8-generic", "6.6.119", "5.15.0", "6.1.0-56-amd64", "4.20"] {
            assert!(is_older(older), "{older}");
        }
        for tested in ["6.12.0", "6.12.117+deb13-amd64", "7.0-rc1", "10.1", "", "unknown", "6"] {
            assert!(!is_older(tested), "{tested}");
        }
        assert!(!is_older(&release()), "tests run on a kernel that is supported");
    }

    #[test]
    fn a_realtime_kernel_says_so() {
        assert!(says_realtime("#1 SMP PREEMPT_RT Debian 6.12.117-1 (2026-11-12)\n"));
        assert!(!says_realtime("#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1 (2026-11-12)\n"));
        assert!(!is_realtime(), "tests run on a kernel that is supported");
    }
}
