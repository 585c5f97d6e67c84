//! The cell's side of the socket.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palisade_cell::{Reply, Request, Setup, decode, read_frame, write_frame};
use serde_json::Value;

use crate::exec::{self, Running, Wanted};
use crate::shell::{self, Shell};
use crate::tools::{self, Output};

/// Calls and commands at a time.
const LIMIT: usize = 64;

/// The way back to the worker, and what is running.
pub(crate) struct Link {
    socket: Mutex<UnixStream>,
    commands: Mutex<HashMap<u64, Arc<Running>>>,
}

impl Link {
    /// Sends a frame; false when the worker is gone.
    pub(crate) fn send(&self, reply: &Reply, raw: &[u8]) -> bool {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut *socket, reply, raw).is_ok()
    }

    pub(crate) fn forget(&self, id: u64) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn command(&self, id: u64) -> Option<Arc<Running>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// Serves until the socket closes.
pub(crate) fn serve(mut socket: UnixStream, setup: Setup) {
    let Ok(writer) = socket.try_clone() else { return };
    let link = Arc::new(Link { socket: Mutex::new(writer), commands: Mutex::new(HashMap::new()) });
    let shell = Arc::new(Shell::new(setup.env.clone()));
    let roots = Arc::new(tools::Roots::new(&setup.roots));
    let busy = Arc::new(AtomicUsize::new(0));
    // A malformed frame means that the two ends no longer understand each other: the end, as with a closed socket.
    while let Ok(Some(frame)) = read_frame(&mut socket) {
        let Ok((request, raw)) = decode::<Request>(&frame) else { return };
        match request {
            Request::Tool { id, name, input, timeout_ms } => {
                let (shell, roots, guard) = (shell.clone(), roots.clone(), Busy::new(&busy));
                let back = link.clone();
                let run = move || {
                    let output = match guard {
                        Some(_) => run_tool(&shell, &roots, id, &name, &input, timeout_ms),
                        None => Output::error(format!("{name}: too many calls at once in this sandbox")),
                    };
                    back.send(&Reply::Tool { id, content: output.content, is_error: output.is_error }, &[]);
                };
                let thread = std::thread::Builder::new().stack_size(512 << 10);
                if thread.spawn(run).is_err() {
                    let text = "the sandbox has reached its limit of processes";
                    let output = Output::error(text);
                    link.send(&Reply::Tool { id, content: output.content, is_error: true }, &[]);
                }
            }
            Request::Exec { id, argv, env, cwd, stdin, timeout_ms } => {
                let wanted = Wanted { id, argv, env, cwd, stdin, timeout_ms };
                // The command is known before it can end, so that its end removes it.
                let mut commands = link.commands.lock().unwrap_or_else(PoisonError::into_inner);
                let started = if commands.len() >= LIMIT {
                    Err(std::io::Error::other("too many commands at once in this sandbox"))
                } else {
                    exec::start(wanted, &setup.env, &link)
                };
                match started {
                    Ok(running) => {
                        commands.insert(id, running);
                    }
                    Err(why) => {
                        drop(commands);
                        link.send(&Reply::ExecFailed { id, message: why.to_string() }, &[]);
                    }
                }
            }
            Request::Stdin { id } => {
                if let Some(running) = link.command(id) {
                    running.write(raw);
                }
            }
            Request::Signal { id, signal } => {
                if let Some(running) = link.command(id) {
                    running.signal(signal);
                }
            }
            Request::Window { id, bytes } => {
                if let Some(running) = link.command(id) {
                    running.open_window(bytes);
                }
            }
            Request::Cancel { id } => match link.command(id) {
                Some(running) => running.kill(),
                None => shell.cancel(id),
            },
        }
    }
}

/// Counts what runs.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: &Arc<AtomicUsize>) -> Option<Busy> {
        let guard = Busy(count.clone());
        (count.fetch_add(1, Ordering::Relaxed) < LIMIT).then_some(guard)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn run_tool(shell: &Shell, roots: &tools::Roots, id: u64, name: &str, input: &Value, timeout_ms: u64) -> Output {
    if name == "bash" {
        shell::bash(shell, id, input, Duration::from_millis(timeout_ms))
    } else {
        tools::run(roots, name, input)
    }
}
