//! What belongs to the worker and to the host: secrets, the cell, files.

use crate::hostile::Attempt;
use crate::hostile::ways::{Limit, Target, Way};

pub(super) const SECRETS: &[Attempt] = &[
    Attempt::new("secrets.environment", "find the worker's variables in any environment")
        .after("R110")
        .by(Way::Variable),
    Attempt::new("secrets.arguments", "find the worker's command line").after("R129"),
    Attempt::new("secrets.descriptors", "find descriptors beyond the three"),
    Attempt::new("secrets.descriptor-numbers", "the same without /proc, number by number"),
    Attempt::new("secrets.descriptors-of-others", "find sockets or files of the worker in other processes"),
    Attempt::new("secrets.streams", "find out that input and output lead somewhere"),
];

pub(super) const CELL: &[Attempt] = &[
    Attempt::new("cell.environment", "read the cell's environment"),
    Attempt::new("cell.memory-read", "open the cell's memory for reading"),
    Attempt::new("cell.memory-write", "open the cell's memory for writing"),
    Attempt::new("cell.memory-map", "read the cell's memory map"),
    Attempt::new("cell.memory-calls", "read and write the cell's memory by system call"),
    Attempt::new("cell.auxiliary-vector", "read the cell's auxiliary vector"),
    Attempt::new("cell.stack", "read the cell's kernel stack"),
    Attempt::new("cell.system-call", "read what the cell waits for"),
    Attempt::new("cell.io-counters", "read how much the cell has read and written"),
    Attempt::new("cell.descriptors", "list the cell's descriptors"),
    Attempt::new("cell.socket", "reach the cell's socket through /proc"),
    Attempt::new("cell.socket-steal", "take the cell's socket by its process handle"),
    Attempt::new("cell.program-read", "open the cell's program"),
    Attempt::new("cell.program-overwrite", "overwrite a program that the host started").after("CVE-2019-5736"),
    Attempt::new("cell.trace", "attach to the cell"),
    Attempt::new("cell.seize", "seize the cell"),
    Attempt::new("cell.compare", "compare the cell's kernel objects"),
    Attempt::new("cell.namespaces", "read which namespaces the cell is in"),
    Attempt::new("cell.race-read", "have the read tool follow a changing link to the cell's own files")
        .by(Way::Race { tool: "read", to: Target::Cell }),
    Attempt::new("cell.race-grep", "have the grep tool follow a changing link to the cell's own files")
        .by(Way::Race { tool: "grep", to: Target::Cell }),
];

pub(super) const SURVIVAL: &[Attempt] = &[
    Attempt::new("survival.signals", "send the cell every signal").by(Way::Host),
    Attempt::new("survival.signals-without-end", "send the cell signals while it starts commands").by(Way::Starting),
    Attempt::new("survival.kill-all", "kill everybody").by(Way::Host),
    Attempt::new("survival.stop-all", "stop everybody").by(Way::Host),
    Attempt::new("survival.signal-by-handle", "signal the cell by its handle, and each of its threads").by(Way::Host),
    Attempt::new("survival.limits", "lower the cell's limits"),
    Attempt::new("survival.victim-score", "make the cell the first victim when memory runs out"),
    Attempt::new("survival.name", "rename the cell"),
    Attempt::new("survival.slack", "make the cell's timers late"),
    Attempt::new("survival.dump-filter", "change what the cell's dump would hold"),
    Attempt::new("survival.label", "change the cell's label"),
    Attempt::new("survival.clear-references", "age the cell's pages"),
    Attempt::new("survival.user-map", "map root into the cell's user namespace"),
    Attempt::new("survival.slow-down", "take the processor from the cell: priority, class, affinity")
        .by(Way::Bomb(Limit::Pids(64))),
    Attempt::new("survival.release-memory", "free the cell's memory"),
    Attempt::new("survival.move-pages", "move the cell's memory"),
    Attempt::new("survival.true", "do nothing, and see the worker answered"),
];

pub(super) const LINKS: &[Attempt] = &[
    Attempt::new("links.by-name", "read the host's canary by its name"),
    Attempt::new("links.dots", "read it by way of .."),
    Attempt::new("links.own-root", "read it through one's own root in /proc"),
    Attempt::new("links.cell-root", "read it through the cell's root"),
    Attempt::new("links.cell-directory", "read it through the cell's working directory"),
    Attempt::new("links.thread-root", "read it through the thread's root"),
    Attempt::new("links.every-root", "read it through every process's root and directory"),
    Attempt::new("links.leaked-directories", "read it from a directory that was left open").after("CVE-2024-21626"),
    Attempt::new("links.symbolic", "read it through a symbolic link"),
    Attempt::new("links.hard", "give it a second name"),
    Attempt::new("links.hard-by-descriptor", "give a read-only file a second name that may be written"),
    Attempt::new("links.marker", "make a file where the host's canary is"),
    Attempt::new("links.race-read", "have the read tool follow a link that changes to the host's directory")
        .after("CVE-2018-15664")
        .by(Way::Race { tool: "read", to: Target::Host }),
    Attempt::new("links.race-write", "have the write tool follow a link that changes to the host's directory")
        .after("CVE-2018-15664")
        .by(Way::Race { tool: "write", to: Target::Host }),
    Attempt::new("links.race-edit", "have the edit tool follow a link that changes to the host's directory")
        .after("CVE-2018-15664")
        .by(Way::Race { tool: "edit", to: Target::Host }),
    Attempt::new("links.race-glob", "have the glob tool follow a link that changes to the host's directory")
        .after("CVE-2018-15664")
        .by(Way::Race { tool: "glob", to: Target::Host }),
    Attempt::new("links.race-grep", "have the grep tool follow a link that changes to the host's directory")
        .after("CVE-2018-15664")
        .by(Way::Race { tool: "grep", to: Target::Host }),
];

pub(super) const FILES: &[Attempt] = &[
    Attempt::new("files.passwords", "read passwords and keys of the host"),
    Attempt::new("files.homes", "read homes and logs of the host"),
    Attempt::new("files.engine-sockets", "find sockets of container engines and of the system"),
    Attempt::new("files.machine-identity", "read the machine's identity"),
    Attempt::new("files.boot", "read the boot directory"),
    Attempt::new("files.root-write", "make a file in the root").after("R122"),
    Attempt::new("files.etc-write", "make a file in /etc"),
    Attempt::new("files.programs-write", "make a file among the programs"),
    Attempt::new("files.devices-write", "make a file in /dev"),
    Attempt::new("files.mounts-write", "make a file beside the memory stores"),
    Attempt::new("files.read-only-write", "write a read-only file"),
    Attempt::new("files.read-only-create", "make a file in a read-only place"),
    Attempt::new("files.read-only-remove", "remove a read-only file"),
    Attempt::new("files.read-only-rename", "move a read-only file into the workspace"),
    Attempt::new("files.read-only-mode", "change a read-only file's mode by a descriptor"),
    Attempt::new("files.read-only-times", "change a read-only file's times"),
    Attempt::new("files.read-only-attributes", "set an attribute of a read-only file"),
    Attempt::new("files.read-only-reopen", "open a descriptor once more, for writing"),
    Attempt::new("files.dirty-pipe", "write a page of a read-only file through a pipe").after("CVE-2022-0847"),
    Attempt::new("files.dirty-cow", "write a page of a read-only file through a private copy").after("CVE-2016-5195"),
    Attempt::new("files.splice-write", "write a shared page through one's own memory file"),
    Attempt::new("files.shared-mapping", "map a read-only file for writing"),
    Attempt::new("files.own-program-of-root", "find any other mount that can be written"),
    Attempt::new("files.names", "use names that programs trip over"),
    Attempt::new("files.race-write", "have the write tool follow a changing link to a read-only place")
        .by(Way::Race { tool: "write", to: Target::ReadOnly }),
    Attempt::new("files.race-edit", "have the edit tool follow a changing link to a read-only place")
        .by(Way::Race { tool: "edit", to: Target::ReadOnly }),
];
