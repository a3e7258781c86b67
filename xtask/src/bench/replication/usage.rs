//! What a process and a cable have used.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use fwha_tests::lab::{Lab, Node};
use serde_json::Value;

/// Nanoseconds of CPU so far, by the names of a process's threads.
#[derive(Clone, Debug, Default)]
pub struct Cpu(BTreeMap<String, u64>);

impl Cpu {
    /// Of a process, by its number.
    pub fn of(pid: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("read the threads of a process")? {
            let dir = task?.path();
            let read = |file| fs::read_to_string(dir.join(file));
            // A thread may end meanwhile.
            if let (Ok(name), Ok(stat)) = (read("comm"), read("schedstat")) {
                let ns: u64 = stat.split(' ').next().unwrap_or_default().parse().context("schedstat")?;
                *threads.entry(name.trim().to_owned()).or_default() += ns;
            }
        }
        Ok(Self(threads))
    }

    /// What was used since then.
    pub fn since(&self, before: &Self) -> Self {
        let then = |name| before.0.get(name).copied().unwrap_or(0);
        Self(self.0.iter().map(|(name, ns)| (name.clone(), ns.saturating_sub(then(name)))).collect())
    }

    /// All threads together.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// By thread.
    pub fn threads(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, ns)| (name.as_str(), *ns))
    }
}

/// What the processes on both nodes have used since then.
pub fn since(now: &[Cpu; 2], before: &[Cpu; 2]) -> [Cpu; 2] {
    [now[0].since(&before[0]), now[1].since(&before[1])]
}

/// Nanoseconds of CPU that the calling thread has used, with what the kernel did in its place: the packets that it sent.
pub fn own_cpu() -> Result<u64> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").context("read schedstat")?;
    stat.split(' ').next().unwrap_or_default().parse().context("schedstat")
}

/// Bytes of memory that a process occupies.
pub fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read status")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(kib.context("VmRSS")?.trim().parse::<u64>()? * 1024)
}

/// What has gone over a sync link so far, both ways.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub bytes: u64,
    pub packets: u64,
}

impl Link {
    /// As a node's interface has counted.
    pub fn of(lab: &Lab, node: Node) -> Result<Self> {
        let said = lab.exec(node.host(), &["ip", "-json", "-statistics", "link", "show", "sync"])?;
        let links: Value = serde_json::from_str(&said).context("JSON of ip")?;
        let count = |field: &str| {
            let way = |way: &str| links.pointer(&format!("/0/stats64/{way}/{field}"))?.as_u64();
            way("rx")
                .zip(way("tx"))
                .map(|(rx, tx)| rx + tx)
                .with_context(|| format!("{field} in ip's answer"))
        };
        Ok(Self { bytes: count("bytes")?, packets: count("packets")? })
    }

    /// What has gone since then.
    pub fn since(self, before: Self) -> Self {
        Self { bytes: self.bytes - before.bytes, packets: self.packets - before.packets }
    }
}
