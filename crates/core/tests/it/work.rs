//! Work items: claims, leases, lapses.

use palisade_api::{EnvironmentId, SessionId, Timestamp, WorkId, WorkState};
use palisade_core::work::{Item, Lapse, Leases, Refused};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn item() -> Item {
    Item::new(WorkId::from("work_1"), EnvironmentId::from("env_1"), &SessionId::from("sesn_1"), at(0), None)
}

#[test]
fn a_claim_that_nobody_acknowledges_is_repeated() {
    let mut item = item();
    assert!(item.claimable(at(1), 5_000_000));
    item.claim(at(1));
    assert!(!item.claimable(at(2), 5_000_000));
    assert!(item.claimable(at(6), 5_000_000));
    item.ack(at(6)).unwrap();
    assert!(!item.claimable(at(60), 5_000_000));
}

#[test]
fn a_heartbeat_must_follow_the_last_one() {
    let leases = Leases::default();
    let mut item = item();
    item.claim(at(1));
    item.ack(at(1)).unwrap();
    let first = item.beat(None, None, &leases, at(2)).unwrap();
    assert_eq!((first.state, first.lease_extended, first.ttl_seconds), (WorkState::Active, true, 30));
    assert!(
        matches!(item.beat(None, None, &leases, at(3)), Err(Refused::Heartbeat(current)) if !current.lease_extended)
    );
    // Two beats at one instant still differ.
    let second = item.beat(Some(&first.last_heartbeat), Some(60), &leases, at(2)).unwrap();
    assert_ne!(first.last_heartbeat, second.last_heartbeat);
    assert_eq!(second.ttl_seconds, 60);
    assert_eq!(
        item.beat(Some(&second.last_heartbeat), Some(0), &leases, at(3)),
        Err(Refused::Range("desired_ttl_seconds"))
    );
}

#[test]
fn silence_gives_the_item_back_to_the_queue() {
    let leases = Leases::default();
    let mut item = item();
    item.claim(at(1));
    item.ack(at(1)).unwrap();
    assert_eq!(item.lapse(&leases, at(2)), Lapse::Held);
    assert_eq!(item.lapse(&leases, at(1).plus(leases.start)), Lapse::Requeued, "acknowledged and never heard of again");
    assert!(item.claimable(at(40), 0));
    item.claim(at(40));
    item.ack(at(40)).unwrap();
    let beat = item.beat(None, None, &leases, at(41)).unwrap();
    assert_eq!(item.lapse(&leases, at(41).plus(leases.ttl)), Lapse::Requeued);
    // The worker that fell silent comes back too late.
    assert!(matches!(item.beat(Some(&beat.last_heartbeat), None, &leases, at(90)), Err(Refused::Heartbeat(_))));
}

#[test]
fn stopping_is_heard_at_the_next_heartbeat() {
    let leases = Leases::default();
    let mut item = item();
    item.claim(at(1));
    item.ack(at(1)).unwrap();
    let beat = item.beat(None, None, &leases, at(2)).unwrap();
    item.stop(false, at(3)).unwrap();
    assert_eq!(item.beat(Some(&beat.last_heartbeat), None, &leases, at(4)).unwrap().state, WorkState::Stopping);
    item.stop(true, at(5)).unwrap();
    assert_eq!(item.work.state, WorkState::Stopped);
    assert_eq!(item.stop(true, at(6)), Err(Refused::State(WorkState::Stopped)));
}
