//! Names that change while somebody follows them: a directory and a link take each other's place without pause.

use crate::sys::{self, call, path};
use crate::{Attempt, Facts, Said};

pub(crate) const ATTEMPTS: &[Attempt] = &[
    // `to` is where the link leads. The host calls its tools on `turn/…` meanwhile, and judges what they did.
    ("links.race", |facts| swap(facts)),
    // What the file tools are then called on.
    ("tools.sparse-file", |_| {
        done(sys::make("sparse", "").and_then(|_| call!(libc::SYS_truncate, c"sparse", 7u64 << 30)))
    }),
    ("tools.many-entries", |facts| {
        let many = facts.number("many");
        let _ = std::fs::create_dir("many");
        // Names of a few files, which are made faster than as many files.
        let mut of = path("many/0");
        for n in 0..many {
            let at = path(&format!("many/{n}"));
            let link = |of| call!(libc::SYS_linkat, libc::AT_FDCWD, of, libc::AT_FDCWD, &at, 0);
            if n == 0 || link(&of).is_err() {
                let made = call!(libc::SYS_mknodat, libc::AT_FDCWD, &at, libc::S_IFREG | 0o644, 0);
                if made.is_err() {
                    return done(made);
                }
                of = at;
            }
        }
        done(Ok(0))
    }),
    ("tools.fifo", |_| done(call!(libc::SYS_mknodat, libc::AT_FDCWD, c"fifo", libc::S_IFIFO | 0o666, 0))),
    ("tools.link-loop", |_| {
        let _ = std::fs::create_dir("loop");
        for (target, at) in
            [("..", "loop/up"), (".", "loop/self"), ("/", "loop/root"), ("b", "loop/a"), ("a", "loop/b")]
        {
            let _ = std::os::unix::fs::symlink(target, at);
        }
        done(Ok(0))
    }),
    ("tools.endless", |_| {
        for (target, at) in
            [("/dev/zero", "zero"), ("/dev/urandom", "random"), ("/proc/kmsg", "kmsg"), ("/dev/tty", "tty")]
        {
            let _ = std::os::unix::fs::symlink(target, at);
        }
        done(Ok(0))
    }),
    ("tools.deep", |facts| {
        // Deeper than any path that can be named in one piece.
        for _ in 0..facts.number("deep") {
            let made = call!(libc::SYS_mkdirat, libc::AT_FDCWD, c"deeper", 0o755)
                .and_then(|_| call!(libc::SYS_chdir, c"deeper"));
            if made.is_err() {
                return done(made);
            }
        }
        done(sys::make("bottom", "x"))
    }),
    ("tools.long-line", |_| done(sys::make("line", &"x".repeat(12 << 20)))),
    ("tools.escapes", |_| {
        let _ = sys::make("\u{1b}]0;title\u{7}name", "x");
        done(sys::make("escapes", "needle \u{1b}[2J\u{1b}]52;c;ZXZpbA==\u{7}\u{9b}2J\n"))
    }),
];

fn done(result: Result<usize, sys::Errno>) -> Said {
    match result {
        Ok(_) => Said::Unclear("prepared".to_owned()),
        Err(why) => Said::Unclear(format!("not prepared: {why}")),
    }
}

fn swap(facts: &Facts) -> Said {
    let _ = std::fs::create_dir("turn");
    let _ = std::fs::create_dir("other");
    for name in ["canary", "note", "maps", "environ"] {
        let _ = sys::make(&format!("turn/{name}"), "inside\n");
    }
    let _ = std::os::unix::fs::symlink(facts.text("to"), "link");
    let _ = sys::make("racing", "");
    let mut turns = 0u64;
    sys::for_ms(facts.number("ms"), || {
        // RENAME_EXCHANGE.
        turns += u64::from(call!(libc::SYS_renameat2, libc::AT_FDCWD, c"turn", libc::AT_FDCWD, c"link", 2).is_ok());
    });
    // Left as a directory, for whoever clears up.
    if turns % 2 == 1 {
        let _ = call!(libc::SYS_renameat2, libc::AT_FDCWD, c"turn", libc::AT_FDCWD, c"link", 2);
    }
    Said::Unclear(format!("{turns} turns"))
}
