//! More than was given: processes, memory, room, numbered things.

use crate::hostile::Attempt;
use crate::hostile::ways::{Limit, Way};

pub(super) const PROCESSES: &[Attempt] = &[
    Attempt::new("processes.fork", "fork beyond the limit").after("R122").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.sessions", "the same, each in a session of its own").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.groups", "the same, each in a group of its own").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.siblings", "the same, as children of the cell").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.orphans", "the same, as orphans").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.zombies", "the same, with processes that nobody collects").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.threads", "start threads beyond the limit").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.churn", "fork and end without pause").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.churn-detached", "the same with orphans").by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("processes.spin", "keep every processor busy").by(Way::Bomb(Limit::Pids(64))),
];

pub(super) const MEMORY: &[Attempt] = &[
    Attempt::new("memory.anonymous", "use more memory than allowed")
        .after("R122")
        .by(Way::Bomb(Limit::Memory(64 << 20))),
    Attempt::new("memory.children", "the same, spread over processes").by(Way::Bomb(Limit::Memory(64 << 20))),
    Attempt::new("memory.shared", "the same, as a shared mapping").by(Way::Flood(Limit::Memory(64 << 20))),
    Attempt::new("memory.file-in-memory", "the same, as a file in memory").by(Way::Flood(Limit::Memory(64 << 20))),
    Attempt::new("memory.shared-segment", "the same, as a shared memory segment")
        .by(Way::Flood(Limit::Memory(64 << 20))),
    Attempt::new("memory.page-tables", "the same, as page tables").by(Way::Flood(Limit::Memory(64 << 20))),
    Attempt::new("memory.pipes", "the same, as pipes' buffers").by(Way::Flood(Limit::Memory(64 << 20))),
    Attempt::new("memory.sockets", "the same, as sockets' buffers").by(Way::Flood(Limit::Memory(64 << 20))),
    Attempt::new("memory.locked", "lock memory").by(Way::Bomb(Limit::Files(256))),
];

pub(super) const PLACES: &[Attempt] = &[
    Attempt::new("places.tmp", "fill /tmp").after("R122").by(Way::Bomb(Limit::Places(64 << 20))),
    Attempt::new("places.home", "fill the home directory").after("R122").by(Way::Bomb(Limit::Places(64 << 20))),
    Attempt::new("places.run", "fill /run").after("R122").by(Way::Bomb(Limit::Places(64 << 20))),
    Attempt::new("places.shared-memory", "fill /dev/shm").after("R122").by(Way::Bomb(Limit::Places(64 << 20))),
    Attempt::new("places.tmp-names", "fill /tmp with empty files").by(Way::Bomb(Limit::Names(20_000))),
    Attempt::new("places.home-names", "fill the home directory with empty files").by(Way::Bomb(Limit::Names(20_000))),
    Attempt::new("places.run-names", "fill /run with empty files").by(Way::Bomb(Limit::Names(20_000))),
    Attempt::new("places.shared-memory-names", "fill /dev/shm with empty files").by(Way::Bomb(Limit::Names(20_000))),
    Attempt::new("places.workspace", "fill the workspace").by(Way::Bomb(Limit::Disk(32 << 20))),
    Attempt::new("places.outputs", "fill the outputs").by(Way::Bomb(Limit::Disk(32 << 20))),
    Attempt::new("places.workspace-allocation", "allocate more than the workspace holds")
        .by(Way::Bomb(Limit::Disk(32 << 20))),
    Attempt::new("places.workspace-names", "fill the workspace with empty files")
        .by(Way::Bomb(Limit::DiskNames(2_000))),
    Attempt::new("places.outputs-names", "fill the outputs with empty files").by(Way::Bomb(Limit::DiskNames(2_000))),
    Attempt::new("places.long-file", "make a file longer than allowed").by(Way::Bomb(Limit::File(8 << 20))),
    Attempt::new("places.long-write", "write a file longer than allowed").by(Way::Bomb(Limit::File(8 << 20))),
    Attempt::new("places.long-allocation", "allocate a file longer than allowed").by(Way::Bomb(Limit::File(8 << 20))),
];

pub(super) const RESOURCES: &[Attempt] = &[
    Attempt::new("resources.descriptors", "open more files than allowed").by(Way::Bomb(Limit::Files(256))),
    Attempt::new("resources.passed-descriptors", "make more sockets than allowed").by(Way::Bomb(Limit::Files(256))),
    Attempt::new("resources.descriptor-limit", "raise the limit of open files").by(Way::Bomb(Limit::Files(256))),
    Attempt::new("resources.process-limit", "raise the limit of processes").by(Way::Bomb(Limit::Files(256))),
    Attempt::new("resources.message-queues", "make a message queue").by(Way::Bomb(Limit::Files(256))),
    Attempt::new("resources.inotify-instances", "use up a user's watching of files").by(Way::Held(1 << 16)),
    Attempt::new("resources.inotify-watches", "use up a user's watched files").by(Way::Held(100_000)),
    Attempt::new("resources.timers", "use up a user's timers").by(Way::Held(200_000)),
    Attempt::new("resources.pending-signals", "use up a user's pending signals").by(Way::Held(200_000)),
    Attempt::new("resources.epoll-watches", "use up a user's polled files").by(Way::Held(1 << 16)),
    Attempt::new("resources.pipe-pages", "use up a user's pages of pipes").by(Way::HeldByUser(1 << 16)),
    Attempt::new("resources.file-locks", "use up a user's file locks").by(Way::Held(100_000)),
];
