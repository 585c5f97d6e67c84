//! A process that is killed at any moment leaves every acknowledged batch, and no other by halves.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use palisade_api::EventId;
use palisade_core::batch::{Batch, Kind, LogEntry, Mutation, PendingEntry, Precondition, Record};
use palisade_store::{EventQuery, ListQuery, Options, Sqlite, Store};

use crate::fixture::{entry, key, record, session, waiting};

/// Tells the child process which database to write.
const DATABASE: &str = "PALISADE_STORE_CRASH_DATABASE";

const SESSIONS: [&str; 4] = ["a", "b", "c", "d"];
const KILLS: u32 = 40;

/// Batch `n` of a session: a change in every table, which must be found together or not at all.
fn numbered(name: &str, n: u64) -> Batch {
    let session = session(name);
    let log: Vec<LogEntry> = (3 * n - 2..=3 * n)
        .map(|seq| LogEntry {
            body: format!(r#"{{"n":{n},"text":"{}"}}"#, "x".repeat(900)),
            ..entry(seq, "agent.message")
        })
        .collect();
    let work = Record { parent: Some(name.to_owned()), ..record(Kind::Work, &format!("{name}-{n}"), n.cast_signed()) };
    let mut own = record(Kind::Session, session.as_str(), 1);
    own.labels.insert("n".into(), n.to_string());
    Batch::new()
        .when(Precondition::Tail(session.clone(), 3 * (n - 1)))
        .with(Mutation::Put(own))
        .with(Mutation::Append(session.clone(), log))
        .with(Mutation::Enqueue(session.clone(), vec![waiting(&format!("p{n}"))]))
        .with(Mutation::Dequeue(session.clone(), vec![EventId::from_tail(&format!("p{}", n - 1))]))
        .with(Mutation::Put(work))
        .with(Mutation::TakeLease(session, n))
}

/// Checks that a session holds batches `1..=n` and nothing else, and returns `n`.
async fn whole_batches(store: &Sqlite, name: &str) -> u64 {
    let session = session(name);
    let tail = store.tail(&session).await.unwrap();
    let n = tail / 3;
    assert_eq!(tail, 3 * n, "a batch of {name} is there by a part of its events");
    let log = store.events(&EventQuery::all(session.clone(), usize::MAX)).await.unwrap();
    let seqs: Vec<u64> = log.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, (1..=tail).collect::<Vec<_>>());
    assert!(log.iter().all(|entry| entry.body.contains(&format!(r#"{{"n":{},"#, entry.seq.div_ceil(3)))));
    assert_eq!(store.epoch(&session).await.unwrap(), n);
    let works = ListQuery { parent: Some(name.to_owned()), ..ListQuery::new(Kind::Work) };
    assert_eq!(store.count(&works).await.unwrap(), n);
    let own = store.get(&key(Kind::Session, session.as_str())).await.unwrap();
    assert_eq!(own.as_ref().map_or(0, |own| own.revision), n);
    let pending: Vec<PendingEntry> = store.pending(&session).await.unwrap();
    if n > 0 {
        let labelled = ListQuery { labels: vec![("n".into(), n.to_string())], ..ListQuery::new(Kind::Session) };
        assert!(store.list(&labelled).await.unwrap().contains(&own.unwrap()));
        assert_eq!(pending, [waiting(&format!("p{n}"))]);
    } else {
        assert_eq!(pending, []);
    }
    n
}

/// The other half of the test below: writes until it is killed. Without its variable there is nothing to write to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing_process() {
    let Some(database) = std::env::var_os(DATABASE) else { return };
    // Checkpoints every few batches, so that it is killed in the middle of those too.
    let options = Options { checkpoint_bytes: Some(128 * 1024), ..Options::default() };
    let store = Sqlite::open_with(Path::new(&database), options).unwrap();
    let write = async |name: &'static str| {
        let from = store.tail(&session(name)).await.unwrap() / 3;
        for n in from + 1.. {
            store.commit(numbered(name, n)).await.unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "\nacknowledged {name} {n}").unwrap();
            out.flush().unwrap();
        }
    };
    futures::future::join_all(SESSIONS.map(write)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_what_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("palisade.db");
    let mut reached: BTreeMap<&str, u64> = SESSIONS.map(|name| (name, 0)).into();
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::writing_process", "--nocapture"])
            .env(DATABASE, &database)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = BTreeMap::new();
        let mut seen = 0;
        let mut note = |line: std::io::Result<String>| {
            let line = line.unwrap();
            let mut words = line.split(' ');
            if words.next() == Some("acknowledged") {
                let name = words.next().unwrap().to_owned();
                acknowledged.insert(name, words.next().unwrap().parse::<u64>().unwrap());
                return 1;
            }
            0
        };
        // From before the first to long after, so that every phase of the files' life is met.
        while seen < kill * 2 {
            seen += note(lines.next().expect("the child writes until it is killed"));
        }
        // Somewhere within the next commit.
        tokio::time::sleep(Duration::from_micros(u64::from(kill * 97 % 1500))).await;
        child.kill().unwrap();
        for line in lines {
            note(line);
        }
        child.wait().unwrap();
        if !database.exists() {
            assert!(acknowledged.is_empty());
            continue;
        }

        let store = Sqlite::open(&database).unwrap();
        for (name, reached) in &mut reached {
            let n = whole_batches(&store, name).await;
            let promised = acknowledged.get(*name).copied().unwrap_or(0).max(*reached);
            assert!(n >= promised, "kill {kill}: {name} holds {n} batches, {promised} were acknowledged");
            *reached = n;
        }
        drop(store);
        if kill % 10 == 9 {
            let conn = rusqlite::Connection::open(&database).unwrap();
            let verdict: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(verdict, "ok");
        }
    }
    assert!(reached.values().all(|n| *n > 0), "{reached:?}");
}
