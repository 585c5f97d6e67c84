//! A process that captures, restores, labels and prunes is killed at many points. Whatever it was doing, the store is whole.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use palisade_checkpoint::{CaptureOptions, Retention, State, Store, Transaction};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::rig::{Rig, assert_same, at, options, ownership, read};
use crate::round_trip::noise;

const ROUNDS: u64 = 120;
const CHILD: &str = "PALISADE_CHECKPOINT_CRASH_CHILD";
/// Its number: process ids begin again, and what is made later must be younger.
const ROUND: &str = "PALISADE_CHECKPOINT_CRASH_ROUND";

#[test]
fn a_killed_process_leaves_the_old_state_or_the_new() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(Path::new(&dir));
    }
    let rig = Rig::new();
    let dir = rig.dir.path();
    rig.make("upper");
    let mut killed_in_work = 0;
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "heavy::crash::a_killed_process_leaves_the_old_state_or_the_new", "--nocapture"])
            .env(CHILD, dir)
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It has begun when it writes; then any moment of its work is as good as another.
        let output = child.stdout.take().unwrap();
        let mut begun = [0; 4096];
        while !begun.windows(5).any(|it| it == b"begun") {
            assert_ne!(rustix::io::read(&output, &mut begun).unwrap(), 0, "the child ended by itself");
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Timespec { tv_sec: 0, tv_nsec: ((random >> 33) % 40_000_000) as _ };
        let mut nothing = [PollFd::new(&output, PollFlags::ERR)];
        poll(&mut nothing, Some(&moment)).unwrap();
        child.kill().unwrap();
        let status = child.wait().unwrap();
        killed_in_work += u64::from(status.code().is_none());

        let store = Store::open(dir.join("store")).unwrap();
        assert_eq!(fs::read_dir(dir.join("store/tmp")).unwrap().count(), 0, "round {round}");
        let verified = store.verify().unwrap();
        assert!(verified.faults.is_empty(), "round {round}: {:?}", verified.faults);
        let records = store.list().unwrap();
        assert_eq!(records.len() as u64, verified.checkpoints);
        for record in records {
            let layer = store.materialise(&record.id, ownership()).unwrap();
            // The layer may be one that the child had made: it is whole as well.
            let again = store.capture(layer.path(), &options()).unwrap().checkpoint;
            assert_eq!(again.id, record.id, "round {round}");
        }
        let transaction = Transaction::read(&dir.join("transaction")).unwrap();
        assert!(transaction.is_none_or(|it| store.show(&it.before).is_ok()), "round {round}");
    }
    assert_eq!(killed_in_work, ROUNDS, "each child works until it is killed");
    // The store still does what it is for.
    let upper = dir.join("upper");
    let id = rig.store.capture(&upper, &options()).unwrap().checkpoint.id;
    assert_same(&rig.layer(&id), &read(&upper));
}

#[expect(clippy::print_stdout, reason = "the parent waits for it")]
fn child(dir: &Path) {
    let store = Store::open(dir.join("store")).unwrap();
    let upper = dir.join("upper");
    let round: u64 = std::env::var(ROUND).unwrap().parse().unwrap();
    println!("begun");
    for step in 0u64.. {
        let seed = (round + 1) * 1000 + step;
        for file in 0..10 {
            fs::write(upper.join(format!("file-{file}")), noise(seed + file, 30_000)).unwrap();
        }
        let options = CaptureOptions { created: at(seed), cache: Some(dir.join("cache")), ..options() };
        let checkpoint = store.capture(&upper, &options).unwrap().checkpoint;
        let prepared = Transaction::prepared("sess", "call", checkpoint.id, at(seed));
        prepared.write(&dir.join("transaction")).unwrap();
        drop(store.materialise(&checkpoint.id, ownership()).unwrap());
        prepared.step(State::RolledBack, None, at(seed)).unwrap().write(&dir.join("transaction")).unwrap();
        if step % 2 == 1 {
            store.prune(&Retention { last: 2, younger: Some(Duration::ZERO), ..Retention::default() }).unwrap();
        }
        store.label(&checkpoint.id, Some("latest")).unwrap();
    }
}
