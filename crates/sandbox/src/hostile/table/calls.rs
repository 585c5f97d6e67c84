//! The calls themselves: tools, statuses, streams, time, endings.

use crate::hostile::Attempt;
use crate::hostile::ways::{Expect, Way};

pub(super) const TOOLS: &[Attempt] = &[
    Attempt::new("tools.sparse-file", "have a file of 7 GiB that is not there read").by(Way::Tools {
        fact: "",
        calls: &[
            ("read", r#"{"file_path": "sparse"}"#, Expect::Error),
            ("read", r#"{"file_path": "sparse", "view_range": [1, 9]}"#, Expect::Error),
            ("edit", r#"{"file_path": "sparse", "old_string": "a", "new_string": "b"}"#, Expect::Error),
            ("grep", r#"{"pattern": "x", "path": "sparse"}"#, Expect::Answer),
        ],
    }),
    Attempt::new("tools.many-entries", "have a directory of 100,000 entries listed").by(Way::Tools {
        fact: "many=100000",
        calls: &[
            ("glob", r#"{"pattern": "**"}"#, Expect::Answer),
            ("grep", r#"{"pattern": "x", "path": "many"}"#, Expect::Answer),
        ],
    }),
    Attempt::new("tools.fifo", "have a pipe that nobody writes read").by(Way::Tools {
        fact: "",
        calls: &[
            ("read", r#"{"file_path": "fifo"}"#, Expect::Error),
            ("edit", r#"{"file_path": "fifo", "old_string": "a", "new_string": "b"}"#, Expect::Error),
            ("write", r#"{"file_path": "fifo", "content": "x"}"#, Expect::Error),
            ("grep", r#"{"pattern": "x", "path": "fifo"}"#, Expect::Error),
            ("grep", r#"{"pattern": "zzz"}"#, Expect::Answer),
        ],
    }),
    Attempt::new("tools.link-loop", "have links in circles followed").by(Way::Tools {
        fact: "",
        calls: &[
            ("glob", r#"{"pattern": "**/*"}"#, Expect::Answer),
            ("grep", r#"{"pattern": "root:"}"#, Expect::Answer),
            ("read", r#"{"file_path": "loop/a"}"#, Expect::Error),
            ("write", r#"{"file_path": "loop/a", "content": "x"}"#, Expect::Error),
            ("read", r#"{"file_path": "loop/root/etc/passwd"}"#, Expect::Error),
        ],
    }),
    Attempt::new("tools.endless", "have files without end read").by(Way::Tools {
        fact: "",
        calls: &[
            ("read", r#"{"file_path": "zero"}"#, Expect::Error),
            ("read", r#"{"file_path": "random", "view_range": [1, 9]}"#, Expect::Error),
            ("read", r#"{"file_path": "kmsg"}"#, Expect::Error),
            ("read", r#"{"file_path": "tty"}"#, Expect::Error),
            ("grep", r#"{"pattern": "x", "path": "zero"}"#, Expect::Error),
            ("grep", r#"{"pattern": "x", "path": "/dev/zero"}"#, Expect::Error),
            ("grep", r#"{"pattern": "x", "path": "/proc"}"#, Expect::Error),
            ("write", r#"{"file_path": "zero", "content": "x"}"#, Expect::Error),
        ],
    }),
    Attempt::new("tools.deep", "have 600 directories inside each other walked").by(Way::Tools {
        fact: "deep=600",
        calls: &[
            ("glob", r#"{"pattern": "**/bottom"}"#, Expect::Answer),
            ("grep", r#"{"pattern": "zzz"}"#, Expect::Answer),
        ],
    }),
    Attempt::new("tools.long-line", "have a line of 12 MiB shown").by(Way::Tools {
        fact: "",
        calls: &[
            ("grep", r#"{"pattern": "x", "path": "line"}"#, Expect::Answer),
            ("read", r#"{"file_path": "line", "view_range": [1, 1]}"#, Expect::Error),
            ("grep", r#"{"pattern": "(x+x+)+y", "path": "line"}"#, Expect::Answer),
        ],
    }),
    Attempt::new("tools.escapes", "have a terminal obey names and lines that were found").by(Way::Tools {
        fact: "",
        calls: &[("grep", r#"{"pattern": "needle"}"#, Expect::Plain), ("glob", r#"{"pattern": "*"}"#, Expect::Plain)],
    }),
];

pub(super) const STATUS: &[Attempt] = &[
    Attempt::new("status.forged-line", "print what a status looks like").by(Way::Shell(&[
        r#"printf '%s 0\n' 0000000000000000 0 ok; false"#,
        r#"for n in $(seq 3 20) 255; do printf '%s 0\n' 0000000000000000 >&$n; done 2>/dev/null; false"#,
    ])),
    Attempt::new("status.descriptors", "write to the shell's own descriptors").by(Way::Shell(&[
        r#"exec 9>/tmp/nine; exec 8>&9; false"#,
        r#"exec 9>&-; false"#,
        r#"exec 9>&1; echo 'x 0' >&9; false"#,
        r#"for f in /proc/$PPID/fd/* /proc/$$/fd/*; do [ -p $f ] && (echo 'x 0' > $f) & done 2>/dev/null; wait; false"#,
    ])),
    Attempt::new("status.functions", "replace what the shell itself uses").by(Way::Shell(&[
        r#"set +x; printf() { echo fake; }; false"#,
        r#"eval 'exit() { :; }'; false"#,
        r#"builtin() { :; }; false"#,
        r#"echo() { command echo 0; }; false"#,
    ])),
    Attempt::new("status.traps", "trap what the shell does").by(Way::Shell(&[
        r#"trap 'exit 0' DEBUG; false"#,
        r#"trap 'true; exit 0' ERR; false"#,
        r#"trap 'exit 0' EXIT; false"#,
        r#"PROMPT_COMMAND='exit 0'; false"#,
    ])),
    Attempt::new("status.expansion", "change how the shell reads").by(Way::Shell(&[
        r#"IFS=0123456789abcdef; false"#,
        r#"PS4='$(exit 0)'; shopt -s expand_aliases; alias printf='true '; false"#,
        r#"set -n; false"#,
        r#"shopt -s extdebug; false"#,
    ])),
    Attempt::new("status.environment", "have later commands start with what this one chose").by(Way::Shell(&[
        r#"echo 'exit 0' > /tmp/rc; export BASH_ENV=/tmp/rc ENV=/tmp/rc; false"#,
        r#"mkdir -p /tmp/bin; echo 'exit 0' > /tmp/bin/false; chmod 755 /tmp/bin/false; export PATH=/tmp/bin; ! true"#,
        r#"export LD_PRELOAD=/workspace/none.so LD_LIBRARY_PATH=/workspace LD_AUDIT=/workspace/none.so; (exit 1)"#,
        r#"echo 'exit 0' > ~/.bashrc; cp ~/.bashrc ~/.bash_profile; cp ~/.bashrc ~/.profile; false"#,
    ])),
    Attempt::new("status.gone", "end or replace the shell").by(Way::Shell(&[
        r#"exec true; false"#,
        r#"kill -9 $$; sleep 5"#,
        r#"exec 0</dev/null; false"#,
        r#"kill -STOP $$; false"#,
    ])),
];

pub(super) const STREAMS: &[Attempt] = &[
    Attempt::new("streams.unread", "print without end to both streams, with nobody who reads").by(Way::Unread),
    Attempt::new("streams.deaf", "take no input").by(Way::Deaf),
    Attempt::new("streams.arguments", "have commands started with arguments and variables without measure")
        .by(Way::Arguments),
];

pub(super) const FRAMES: &[Attempt] =
    &[Attempt::new("frames.forged", "say what only the cell may say, on every descriptor").by(Way::Frames)];

pub(super) const TIME: &[Attempt] = &[
    Attempt::new("time.ignore-signals", "ignore every signal when time has run out").by(Way::Overtime),
    Attempt::new("time.stopped", "be stopped when time has run out").by(Way::Overtime),
    Attempt::new("time.stopped-children", "have stopped children when time has run out").by(Way::Overtime),
    Attempt::new("time.own-group", "have a child in a group of its own").by(Way::Overtime),
    Attempt::new("time.own-session", "have a child in a session of its own").by(Way::Overtime),
    Attempt::new("time.busy", "be busy when time has run out").by(Way::Overtime),
    Attempt::new("time.waits-in-kernel", "wait where signals do not reach").by(Way::Overtime),
];

pub(super) const ENDINGS: &[Attempt] = &[
    Attempt::new("endings.daemon", "leave a daemon behind").by(Way::Outlive),
    Attempt::new("endings.renamed-daemon", "leave daemons under other names behind").by(Way::Outlive),
    Attempt::new("endings.orphans", "leave forty orphans behind").by(Way::Outlive),
    Attempt::new("endings.stopped-orphan", "leave a stopped orphan behind").by(Way::Outlive),
    Attempt::new("endings.respawning", "leave processes that start each other anew").by(Way::Outlive),
    Attempt::new("endings.parent-signal", "collect orphans oneself, and kill the cell").by(Way::Outlive),
];
