//! The host's memory, as far as this process may use it, read from `/proc` and the control groups.
//!
//! Every number is best effort: what cannot be read is 0 or no limit.

/// Memory of the machine, or of the control group that this process is confined to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostMemory {
    pub total_bytes: u64,
    /// Without the page cache, which the kernel gives back when it is needed.
    pub used_bytes: u64,
}

/// What this process may use, now.
pub fn memory() -> HostMemory {
    memory_seen_by(&|path| std::fs::read_to_string(path).ok())
}

/// What that process has in RAM, in bytes, if it lives.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    kib_field(&status, "VmRSS:")
}

/// Of that, what is not a file's: it goes with the process and not before.
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    kib_field(&status, "RssAnon:")
}

/// What that process may have in all: what it has, and what nobody has. No limit where nothing is
/// known.
pub fn available_to(pid: Option<u32>) -> u64 {
    available(memory(), pid.and_then(anonymous_bytes).unwrap_or(0))
}

/// But for the last pages: the kernel begins to end processes before there is nothing left. (Of
/// 23.5 GiB it took the last 0.2; allocations are rounded up to pages besides.)
fn available(HostMemory { total_bytes, used_bytes }: HostMemory, its_own: u64) -> u64 {
    const MOST_BYTES: u64 = 1 << 30;
    if total_bytes == 0 {
        return u64::MAX;
    }
    let last = (total_bytes / 32).min(MOST_BYTES);
    total_bytes.saturating_sub(used_bytes.saturating_sub(its_own)).saturating_sub(last)
}

/// How many processes the kernel has ended for want of memory, on this machine or in this control
/// group. 0 where that cannot be read.
pub fn oom_kills() -> u64 {
    oom_kills_seen_by(&|path| std::fs::read_to_string(path).ok())
}

fn oom_kills_seen_by(read: ReadFile) -> u64 {
    // The machine's counts those in all groups.
    let machine = read("/proc/vmstat").and_then(|vmstat| field(&vmstat, "oom_kill"));
    // In a container it may be hidden, and the group's own count is there.
    let group = || {
        let (hierarchy, path) = memory_group(&read("/proc/self/cgroup")?)?;
        let counts = groups_around(&path).filter_map(|group| {
            let events = read(&format!("{}{group}/{}", hierarchy.root, hierarchy.events))?;
            field(&events, "oom_kill")
        });
        counts.max()
    };
    machine.or_else(group).unwrap_or(0)
}

/// The contents of a file, if there is one.
type ReadFile<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The machine's memory, or the group's if that is smaller.
fn memory_seen_by(read: ReadFile) -> HostMemory {
    let machine = machine(&read("/proc/meminfo").unwrap_or_default());
    match control_group(read) {
        Some(group) if group.total_bytes < machine.total_bytes || machine.total_bytes == 0 => group,
        Some(_) | None => machine,
    }
}

fn machine(meminfo: &str) -> HostMemory {
    let total_bytes = kib_field(meminfo, "MemTotal:").unwrap_or(0);
    let available_bytes = kib_field(meminfo, "MemAvailable:").unwrap_or(total_bytes);
    HostMemory { total_bytes, used_bytes: total_bytes.saturating_sub(available_bytes) }
}

/// How a version of control groups names what is read here.
struct Hierarchy {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Where it says how many processes were ended for want of memory.
    events: &'static str,
    /// In `memory.stat`: file pages of the group and all below it.
    file_pages: [&'static str; 2],
}

const V1: Hierarchy = Hierarchy {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    events: "memory.oom_control",
    file_pages: ["total_active_file", "total_inactive_file"],
};

const V2: Hierarchy = Hierarchy {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    events: "memory.events",
    file_pages: ["active_file", "inactive_file"],
};

/// The tightest limit on this process's group and the groups around it, and what is used of it.
fn control_group(read: ReadFile) -> Option<HostMemory> {
    let (hierarchy, path) = memory_group(&read("/proc/self/cgroup")?)?;
    let limited = groups_around(&path).filter_map(|group| {
        let folder = format!("{}{group}", hierarchy.root);
        // "max", or in version 1 a number beyond all memory.
        let limit = read(&format!("{folder}/{}", hierarchy.limit))?.trim().parse::<u64>().ok()?;
        Some((limit, folder))
    });
    let (total_bytes, folder) = limited.min_by_key(|(limit, _)| *limit)?;
    let usage = read(&format!("{folder}/{}", hierarchy.usage));
    let usage: u64 = usage.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let stat = read(&format!("{folder}/memory.stat")).unwrap_or_default();
    let file_pages = hierarchy.file_pages.iter().filter_map(|name| field(&stat, name)).sum();
    Some(HostMemory { total_bytes, used_bytes: usage.saturating_sub(file_pages) })
}

/// Where `/proc/self/cgroup` says that memory is accounted: version 1's memory controller where
/// there is one, else version 2's only hierarchy.
fn memory_group(proc_self_cgroup: &str) -> Option<(Hierarchy, String)> {
    let mut unified = None;
    for line in proc_self_cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.split(',').any(|name| name == "memory") {
            return Some((V1, path.to_owned()));
        }
        if controllers.is_empty() {
            unified = Some((V2, path.to_owned()));
        }
    }
    unified
}

/// A group and those around it, the root last. In a container the path may be the host's, of
/// which the container sees the root alone.
fn groups_around(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    std::iter::successors(Some(path), |group| group.rfind('/').map(|at| &group[..at]))
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

/// The same for numbers in kB, of which /proc means 1,024 bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    field(text, name).map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: (&str, &str) = (
        "/proc/meminfo",
        "MemTotal:       8000 kB\nMemFree:  100 kB\nMemAvailable:   6000 kB\nCached: 5 kB\n",
    );
    const MACHINE: (u64, u64) = (8000 * 1024, 2000 * 1024);

    #[test]
    fn the_smaller_of_machine_and_control_group_counts() {
        let v2 = |path: &'static str| ("/proc/self/cgroup", path);
        let v1 = ("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/1\n0::/\n");
        let stat = "anon 1\nactive_file 100\ninactive_file 200\n\
                    total_active_file 1000\ntotal_inactive_file 2000\n";
        type Files = Vec<(&'static str, &'static str)>;
        let cases: Vec<(&str, Files, (u64, u64))> = vec![
            ("nothing can be read", vec![], (0, 0)),
            ("no control groups", vec![MEMINFO], MACHINE),
            (
                "version 2, no limit",
                vec![MEMINFO, v2("0::/\n"), ("/sys/fs/cgroup/memory.max", "max\n")],
                MACHINE,
            ),
            (
                "version 2 in a container",
                vec![
                    MEMINFO,
                    v2("0::/\n"),
                    ("/sys/fs/cgroup/memory.max", "4096000\n"),
                    ("/sys/fs/cgroup/memory.current", "1000300\n"),
                    ("/sys/fs/cgroup/memory.stat", stat),
                ],
                (4_096_000, 1_000_000),
            ),
            (
                "version 2, the limit is on a group around ours",
                vec![
                    MEMINFO,
                    v2("0::/user.slice/a.service\n"),
                    ("/sys/fs/cgroup/user.slice/a.service/memory.max", "5000000\n"),
                    ("/sys/fs/cgroup/user.slice/memory.max", "3000000\n"),
                    ("/sys/fs/cgroup/user.slice/memory.current", "500\n"),
                ],
                (3_000_000, 500),
            ),
            (
                "version 1, the host's path seen from a container",
                vec![
                    MEMINFO,
                    v1,
                    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n"),
                    ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "13000\n"),
                    ("/sys/fs/cgroup/memory/memory.stat", stat),
                ],
                (2_000_000, 10_000),
            ),
            (
                "version 1, no limit",
                vec![
                    MEMINFO,
                    v1,
                    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                MACHINE,
            ),
        ];
        for (name, files, (total_bytes, used_bytes)) in cases {
            let read = |path: &str| {
                files.iter().find(|(at, _)| *at == path).map(|(_, text)| (*text).to_owned())
            };
            assert_eq!(memory_seen_by(&read), HostMemory { total_bytes, used_bytes }, "{name}");
        }
    }

    #[test]
    fn a_process_may_have_what_it_has_and_what_nobody_has() {
        const GIB: u64 = 1 << 30;
        for (total, used, its_own, expected) in [
            (32, 2, 0, 29),
            (32, 20, 18, 29),
            (320, 2, 0, 317),
            (32, 32, 0, 0),
            (0, 7, 0, u64::MAX / GIB),
        ] {
            let memory = HostMemory { total_bytes: total * GIB, used_bytes: used * GIB };
            assert_eq!(
                available(memory, its_own * GIB) / GIB,
                expected,
                "{total} {used} {its_own}"
            );
        }
    }

    #[test]
    fn killings_for_want_of_memory_are_counted() {
        let group = ("/proc/self/cgroup", "0::/a/b\n");
        let vmstat = ("/proc/vmstat", "nr_free_pages 7\noom_kill 3\nzone_reclaim_failed 0\n");
        let events = |path: &'static str| (path, "low 0\noom 9\noom_kill 2\noom_group_kill 0\n");
        for (files, expected) in [
            (vec![], 0),
            (vec![group, vmstat], 3),
            (vec![group, events("/sys/fs/cgroup/a/memory.events")], 2),
            (
                vec![
                    ("/proc/self/cgroup", "4:memory:/x\n"),
                    events("/sys/fs/cgroup/memory/memory.oom_control"),
                ],
                2,
            ),
            (vec![group], 0),
        ] {
            let read = |path: &str| {
                files.iter().find(|(at, _)| *at == path).map(|(_, text)| (*text).to_owned())
            };
            assert_eq!(oom_kills_seen_by(&read), expected, "{files:?}");
        }
    }

    #[test]
    fn a_process_has_something_in_ram() {
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
