//! Which processes there are, from `/proc`.

use std::fs;

use palisade_cell::Process;

use crate::reaper;

/// Processes that are told of at a time, and bytes of each one's arguments.
const MOST: usize = 2048;
const ARGUMENTS: usize = 1024;

/// The processes of this sandbox: `commands`, completed with what the system knows, then the others.
pub(crate) fn list(mut commands: Vec<Process>) -> Vec<Process> {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split('.').next().and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or(0);
    let mut pids = reaper::all();
    pids.sort_unstable();
    for pid in pids.into_iter().take(MOST) {
        let Some(seen) = look(pid, uptime) else { continue };
        match commands.iter_mut().find(|command| command.pid == pid) {
            Some(command) => {
                let known = std::mem::take(command);
                *command = Process {
                    id: known.id,
                    label: known.label,
                    detached: known.detached,
                    age_ms: known.age_ms,
                    written: known.written,
                    end: known.end,
                    ..seen
                };
            }
            None => commands.push(seen),
        }
    }
    commands
}

fn look(pid: i32, uptime: u64) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, so look behind the last one.
    let (head, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // SAFETY: no pointers.
    let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    let ticks = u64::try_from(ticks).unwrap_or(100).max(1);
    let page = u64::try_from(page).unwrap_or(4096);
    let mut argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    argv.truncate(ARGUMENTS);
    let mut words: Vec<String> = argv
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(&crate::shell::strip_escapes(word)).into_owned())
        .collect();
    if words.last().is_some_and(String::is_empty) {
        words.pop();
    }
    if words.is_empty() {
        let name = head.split_once('(').map_or("", |(_, name)| name);
        words.push(format!("[{}]", String::from_utf8_lossy(&crate::shell::strip_escapes(name.as_bytes()))));
    }
    // proc(5): field 3 is the first behind the name; the terminal is 7, times are 14 and 15, the start is 22, memory 24.
    let terminal = number(4);
    Some(Process {
        pid,
        parent: i32::try_from(number(1)).unwrap_or(0),
        argv: words,
        state: (*fields.first()?).to_owned(),
        // Major numbers 136 to 143 are those of pseudo-terminals.
        tty: (136..144).contains(&((terminal >> 8) & 0xfff)).then_some((terminal & 0xff) as u32),
        age_ms: (uptime * 1000).saturating_sub(number(19) * 1000 / ticks),
        cpu_ms: (number(11) + number(12)) * 1000 / ticks,
        rss_kib: number(21) * page / 1024,
        ..Process::default()
    })
}

/// Processor time of a process and of those of its children that it has waited for, in microseconds.
pub(crate) fn cpu_us(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut ticks = 0;
    for field in rest.split_ascii_whitespace().skip(11).take(4) {
        ticks += field.parse::<u64>().ok()?;
    }
    // SAFETY: no pointers.
    let second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1);
    Some(ticks * 1_000_000 / second)
}
