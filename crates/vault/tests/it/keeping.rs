//! What a vault keeps and for how long, over a source that does as it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use palisade_api::Secret;
use palisade_vault::{Content, Document, FetchError, Kind, Lease, Limits, Source, Sources, Vault};
use tokio::sync::Semaphore;

use crate::rig::{ManualClock, check_log, reference, watch_log};

/// Gives what it is asked for, one permit for each fetch.
#[derive(Debug)]
struct Told {
    permits: Semaphore,
    fetches: AtomicUsize,
    revoked: AtomicUsize,
    leased: bool,
}

impl Told {
    fn new(permits: usize, leased: bool) -> Arc<Self> {
        watch_log();
        let (fetches, revoked) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { permits: Semaphore::new(permits), fetches, revoked, leased })
    }

    async fn asked(&self, times: usize) {
        let wait = async {
            while self.fetches.load(Ordering::SeqCst) < times {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it is asked");
    }
}

#[async_trait]
impl Source for Told {
    fn description(&self) -> String {
        "what is told".to_owned()
    }

    fn per_session(&self, _path: &str) -> bool {
        self.leased
    }

    fn keep(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn fetch(&self, path: &str) -> Result<Document, FetchError> {
        let number = self.fetches.fetch_add(1, Ordering::SeqCst) + 1;
        self.permits.acquire().await.unwrap().forget();
        let mut document = Document::plain(Content::single(Secret::new(format!("CANARY-{path}-{number}"))));
        if self.leased {
            let id = Arc::new(Secret::new(format!("{path}/CANARY-{number}")));
            document.lease = Some(Lease { id, lasts: Duration::from_secs(600), renewable: false });
        }
        Ok(document)
    }

    async fn revoke(&self, _lease: &Lease) -> Result<(), FetchError> {
        self.revoked.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn vault(source: &Arc<Told>, limits: Limits) -> (Vault, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let sources = Sources::from([((Kind::Sealed, String::new()), source.clone() as Arc<dyn Source>)]);
    (Vault::new(sources, limits, clock.clone()), clock)
}

#[tokio::test]
async fn a_thousand_who_ask_at_once_cause_one_fetch() {
    let source = Told::new(0, false);
    let (vault, _) = vault(&source, Limits::default());
    let tasks: Vec<_> = (0..1000)
        .map(|number| {
            let session = vault.session(&format!("s{}", number % 10));
            tokio::spawn(async move { session.value(&reference("sealed:a")).await })
        })
        .collect();
    source.asked(1).await;
    source.permits.add_permits(1);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().expose(), "CANARY-a-1");
    }
    assert_eq!(source.fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn no_more_is_kept_than_there_is_room_for_and_no_longer_than_it_may_be() {
    let source = Told::new(1000, false);
    let (vault, clock) = vault(&source, Limits { entries: 2, ..Limits::default() });
    let session = vault.session("s");
    let get = async |name: &str| session.value(&reference(name)).await.unwrap().expose().to_owned();
    assert_eq!(get("sealed:a").await, "CANARY-a-1");
    clock.pass(1);
    assert_eq!(get("sealed:b").await, "CANARY-b-2");
    clock.pass(1);
    assert_eq!(get("sealed:a").await, "CANARY-a-1");
    assert_eq!(get("sealed:c").await, "CANARY-c-3");
    assert_eq!(get("sealed:a").await, "CANARY-a-1", "what was used longest ago went first");
    assert_eq!(get("sealed:b").await, "CANARY-b-4");
    clock.pass(60);
    // Not kept in memory for want of a next use.
    let weak = Arc::downgrade(&session.value(&reference("sealed:b")).await.unwrap());
    clock.pass(60);
    assert!(weak.upgrade().is_some());
    vault.tend().await;
    assert!(weak.upgrade().is_none());
    assert!(!format!("{vault:?}").contains("CANARY"));
}

#[tokio::test]
async fn a_lease_that_arrives_too_late_goes_straight_back() {
    // The session ends, the secret is revoked, or whoever asked goes away, all while the source is still thinking.
    let source = Told::new(0, true);
    let (vault, _) = vault(&source, Limits { leases_per_session: 2, ..Limits::default() });
    let ask = |session: &str, name: &str| {
        let (session, reference) = (vault.session(session), reference(name));
        tokio::spawn(async move { session.value(&reference).await.map(|_| ()).map_err(|error| error.to_string()) })
    };
    let one = ask("one", "sealed:a");
    source.asked(1).await;
    vault.end_session("one").await;
    source.permits.add_permits(1);
    assert!(one.await.unwrap().unwrap_err().contains("session has ended"));
    assert_eq!(source.revoked.load(Ordering::SeqCst), 1);

    let two = ask("two", "sealed:a");
    source.asked(2).await;
    vault.revoke(&reference("sealed:a")).await;
    source.permits.add_permits(1);
    assert!(two.await.unwrap().unwrap_err().contains("was revoked"));
    assert_eq!(source.revoked.load(Ordering::SeqCst), 2);
    assert!(ask("three", "sealed:a").await.unwrap().unwrap_err().contains("was revoked"));
    assert!(vault.allow(&reference("sealed:a")));

    let gone = ask("three", "sealed:a");
    source.asked(3).await;
    gone.abort();
    let _ = gone.await;
    source.permits.add_permits(1);
    // The fetch went on, and the next who asks has its result.
    assert!(ask("three", "sealed:a").await.unwrap().is_ok());
    assert_eq!(source.fetches.load(Ordering::SeqCst), 3);

    source.permits.add_permits(2);
    assert!(ask("three", "sealed:b").await.unwrap().is_ok());
    assert!(ask("three", "sealed:c").await.unwrap().unwrap_err().contains("already holds 2 leases"));
    assert_eq!(vault.close().await, []);
    assert_eq!(source.revoked.load(Ordering::SeqCst), 4);
    assert!(ask("four", "sealed:a").await.unwrap().unwrap_err().contains("stopping"));
    check_log();
}

#[tokio::test]
async fn a_source_that_does_not_answer_is_given_up_and_tried_less_and_less() {
    let source = Told::new(0, false);
    let (vault, clock) = vault(&source, Limits { fetch: Duration::from_millis(10), ..Limits::default() });
    let session = vault.session("s");
    let ask = async || session.value(&reference("sealed:a")).await;
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        let error = ask().await.unwrap_err();
        assert!(error.is_transient());
        let text = error.to_string();
        assert!(text.contains("no answer within") && text.contains(&format!("asked again in {pause} s")), "{text}");
        let fetches = source.fetches.load(Ordering::SeqCst);
        clock.pass(pause - 1);
        assert!(ask().await.unwrap_err().to_string().contains("asked again in 1 s"));
        assert_eq!(source.fetches.load(Ordering::SeqCst), fetches);
        clock.pass(1);
    }
    source.permits.add_permits(1);
    assert!(ask().await.is_ok());
}
