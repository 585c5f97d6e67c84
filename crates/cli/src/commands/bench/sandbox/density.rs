//! What an idle sandbox holds, and what is left of thousands.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use palisade_sandbox::{Native, Sandbox};

use super::{DENSITY, Home, IDLE, bash, echo, end, start};
use crate::commands::bench::figure::{Figure, Samples};
use crate::commands::bench::memory::{self, Held};
use crate::commands::bench::{Plan, measured};
use crate::output::{Failure, Outcome, note};

/// Made and ended in a minute, while the others are live.
const A_MINUTE: u32 = 1000;
/// What has ended may need so long until the kernel and the runtime have let go of all of it: idle threads wait 10 s.
const SETTLES: Duration = Duration::from_secs(15);

/// Sandboxes with a shell in which nothing runs.
async fn idle_ones(plan: &Plan, driver: &Native, count: usize) -> Outcome<Vec<(Home, Sandbox)>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let home = Home::make(&plan.place)?;
        let made = async {
            let sandbox = start(driver, home.spec()).await?;
            bash(&sandbox, ":").await?;
            Ok(sandbox)
        };
        match made.await {
            Ok(sandbox) => all.push((home, sandbox)),
            Err(why) if all.is_empty() => return Err(why),
            Err(why) => {
                why.report_as_warning();
                note(format!("warning: {} sandboxes are live, {count} were asked for", all.len()));
                break;
            }
        }
    }
    Ok(all)
}

pub(super) async fn idle(plan: &Plan) -> Outcome<Figure> {
    let driver = Native::default();
    // What is there once for all of them comes first.
    for (_home, sandbox) in idle_ones(plan, &driver, 2).await? {
        end(sandbox).await?;
    }
    let own = std::process::id();
    let known: HashSet<u32> = memory::descendants(own)?.into_iter().collect();
    let before = (memory::held(own)?, kernel_mib());
    let all = idle_ones(plan, &driver, plan.pick(50, 8)).await?;
    // Caches that fill once are full, and what has started is asleep.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = (memory::held(own)?, kernel_mib());
    let mut inside: Vec<Held> = Vec::new();
    for pid in memory::descendants(own)?.into_iter().filter(|pid| !known.contains(pid)) {
        inside.push(memory::held(pid)?);
    }
    let charged: Vec<f64> = all.iter().filter_map(|(_, sandbox)| charged_mib(sandbox.pid()?)).collect();
    let count = all.len();
    for (_home, sandbox) in all {
        end(sandbox).await?;
    }
    let each = |total: f64| total / count as f64;
    let is_shell = |held: &&Held| held.name == "bash";
    let shell = each(inside.iter().filter(is_shell).map(|held| held.private).sum());
    let cell = each(inside.iter().filter(|held| !is_shell(held)).map(|held| held.private).sum());
    let worker = each(after.0.private - before.0.private);
    let mut figure = Figure::new(IDLE, cell + worker, "MiB")
        .with_number("cell_mib", cell)
        .with_number("worker_mib", worker)
        .with_number("shell_mib", shell)
        .with_number("machine_kernel_mib", each(after.1 - before.1))
        .with("sandboxes", count);
    if !charged.is_empty() {
        let mean = charged.iter().sum::<f64>() / charged.len() as f64;
        figure = figure.with_number("cgroup_kernel_mib", mean);
    }
    Ok(figure)
}

/// Kernel memory that a process's memory cgroup is charged with, where the kernel says.
fn charged_mib(pid: i32) -> Option<f64> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = |wanted: &str| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|name| name == wanted).then(|| path.to_owned())
        })
    };
    let first = path("memory").and_then(|path| {
        let file = format!("/sys/fs/cgroup/memory{path}/memory.kmem.usage_in_bytes");
        std::fs::read_to_string(file).ok()?.trim().parse::<f64>().ok()
    });
    let bytes = first.or_else(|| {
        let stat = std::fs::read_to_string(format!("/sys/fs/cgroup{}/memory.stat", path("")?)).ok()?;
        stat.lines().find_map(|line| line.strip_prefix("kernel ")?.parse().ok())
    })?;
    Some(bytes / f64::from(1 << 20))
}

/// What the kernel holds for itself on the whole machine, in MiB.
fn kernel_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let fields = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"];
    let lines = text.lines().filter(|line| fields.iter().any(|field| line.starts_with(field)));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum::<f64>() / 1024.0
}

/// What must be as before once all sandboxes have ended.
#[derive(Debug, Clone, PartialEq)]
struct Counts {
    mounts: usize,
    cgroups: usize,
    files: usize,
    processes: usize,
    threads: usize,
}

impl Counts {
    fn now() -> Outcome<Counts> {
        let entries = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
        Ok(Counts {
            mounts: std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().count(),
            cgroups: cgroups(Path::new("/sys/fs/cgroup"), &format!("palisade-{}-", std::process::id())),
            files: entries("/proc/self/fd"),
            processes: memory::descendants(std::process::id())?.len(),
            threads: entries("/proc/self/task"),
        })
    }

    fn is_within(&self, before: &Counts) -> bool {
        self.left(before).iter().all(|(_, left)| *left <= 0)
    }

    fn left(&self, before: &Counts) -> [(&'static str, i64); 5] {
        let more = |after: usize, before: usize| after as i64 - before as i64;
        [
            ("mounts_left", more(self.mounts, before.mounts)),
            ("cgroups_left", more(self.cgroups, before.cgroups)),
            ("files_left", more(self.files, before.files)),
            ("processes_left", more(self.processes, before.processes)),
            ("threads_left", more(self.threads, before.threads)),
        ]
    }
}

/// How many groups below this one have such a name.
fn cgroups(at: &Path, name: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(at) else { return 0 };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .map(|entry| {
            let named = entry.file_name().to_str().is_some_and(|own| own.starts_with(name));
            usize::from(named) + cgroups(&entry.path(), name)
        })
        .sum()
}

pub(super) async fn measure(plan: &Plan) -> Outcome<Figure> {
    let driver = Native::default();
    for (_home, sandbox) in idle_ones(plan, &driver, 2).await? {
        end(sandbox).await?;
    }
    let own = std::process::id();
    let (before, rss) = (Counts::now()?, memory::resident(own)?);
    let begun = Instant::now();
    let live = idle_ones(plan, &driver, plan.live.unwrap_or(plan.pick(1000, 50))).await?;
    let (count, started) = (live.len(), begun.elapsed().as_secs_f64());
    let (times, soaked, behind) = soak(plan, &driver).await?;
    let within = Instant::now();
    for (_home, sandbox) in live {
        end(sandbox).await?;
    }
    let ended = within.elapsed().as_secs_f64();
    let settling = Instant::now();
    let after = loop {
        let after = Counts::now()?;
        if after.is_within(&before) || settling.elapsed() > SETTLES {
            break after;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let mut figure = Figure::new(DENSITY, count as f64, "live")
        .with_number("started_s", started)
        .with_number("ended_s", ended)
        .with("cycles", times.len())
        .with_number("cycles_per_minute", times.len() as f64 * 60.0 / soaked.took.as_secs_f64())
        .with_number("cycle_p50_ms", measured(times.percentile_ms(50), DENSITY)?)
        .with_number("cycle_p99_ms", measured(times.percentile_ms(99), DENSITY)?)
        .with_number("behind_ms", behind.as_secs_f64() * 1000.0)
        .with_number("soak_rss_growth_mib", soaked.growth)
        .with_number("rss_growth_mib", memory::resident(own)? - rss);
    for (name, left) in after.left(&before) {
        figure = figure.with(name, left);
    }
    if !after.is_within(&before) {
        note(format!("warning: {DENSITY}: something is left: {:?}", after.left(&before)));
    }
    Ok(figure)
}

struct Soaked {
    took: Duration,
    /// How much larger this process has become, in MiB.
    growth: f64,
}

/// Sandboxes come and go beside those that are live: how long each took from nothing to its first output, and how far
/// behind its time the last one was.
async fn soak(plan: &Plan, driver: &Native) -> Outcome<(Samples, Soaked, Duration)> {
    let short = plan.pick(Duration::from_secs(20), Duration::from_secs(5));
    let lasts = if plan.soak_minutes == 0 { short } else { Duration::from_secs(60 * plan.soak_minutes) };
    let pace = Duration::from_secs(60) / A_MINUTE;
    let rss = memory::resident(std::process::id())?;
    let begun = Instant::now();
    let mut times = Samples::default();
    let mut due = begun;
    while due.duration_since(begun) < lasts {
        tokio::time::sleep_until(due.into()).await;
        due += pace;
        let home = Home::make(&plan.place)?;
        let from = Instant::now();
        let sandbox = start(driver, home.spec()).await?;
        echo(&sandbox).await?;
        times.add(from.elapsed());
        end(sandbox).await?;
    }
    if times.len() == 0 {
        return Err(Failure::new(format!("{DENSITY} cannot be measured")).why("no sandbox came and went"));
    }
    let growth = memory::resident(std::process::id())? - rss;
    Ok((times, Soaked { took: begun.elapsed(), growth }, Instant::now().saturating_duration_since(due)))
}
