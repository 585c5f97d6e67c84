//! Webhook mode: a genuine delivery wakes the worker, nothing else does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use palisade_testkit::control_plane::{Reply, Route, text};
use palisade_worker::{Mode, Observation, Secret};
use ring::hmac;
use serde_json::json;

use crate::rig::Rig;

const SIGNING: &[u8] = b"0123456789abcdef0123456789abcdef";

struct Sender {
    url: String,
    http: reqwest::Client,
}

impl Sender {
    async fn send(&self, id: &str, sent: u64, key: &[u8], body: &str) -> Option<u16> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let signature = hmac::sign(&key, format!("{id}.{sent}.{body}").as_bytes());
        let request = self.http.post(&self.url).body(body.to_owned());
        let request = request.header("webhook-id", id).header("webhook-timestamp", sent.to_string());
        let request = request.header("webhook-signature", format!("v1,AAAA v1,{}", STANDARD.encode(signature)));
        // A server that refuses a large body may hang up on it: no status.
        Some(request.send().await.ok()?.status().as_u16())
    }
}

#[expect(clippy::disallowed_methods, reason = "the sender's clock")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_genuine_new_delivery_of_the_right_type_wakes_the_worker() {
    let rig = Rig::new().await;
    let mut options = rig.options();
    let signing_key = Secret::new(format!("whsec_{}", STANDARD.encode(SIGNING)));
    options.mode = Mode::Webhook { listen: "127.0.0.1:0".parse().unwrap(), signing_key };
    options.max_idle = Duration::ZERO;
    let working = rig.start_with(options);
    let address = rig
        .fake
        .wait("the listener", |_| {
            rig.observed.lock().unwrap().iter().find_map(|observation| match observation {
                Observation::Listening { address } => Some(*address),
                _ => None,
            })
        })
        .await;
    let sender =
        Sender { url: format!("http://{address}/hook"), http: reqwest::Client::builder().no_proxy().build().unwrap() };
    let polls = || rig.fake.seen_on(Route::Poll).len();
    let body = |kind: &str, session: &str| {
        json!({"type": "event", "id": "wevt_1", "data": {"type": kind, "id": session}}).to_string()
    };
    let started = |session: &str| body("session.status_run_started", session);

    // Answered after a look into the queue, so the one at the start is over, too.
    assert_eq!(sender.send("wevt_first", now(), SIGNING, &started("sesn_any")).await, Some(200));
    let session = rig.fake.session();
    let call = session.bash("echo woken");
    session.queue();
    let started = started(&session.id);
    let before = polls();
    assert_eq!(sender.send("wevt_1", now(), b"another key, another key", &started).await, Some(401));
    assert_eq!(sender.send("wevt_1", now() - 301, SIGNING, &started).await, Some(401));
    let oversized = sender.send("wevt_1", now(), SIGNING, &"x".repeat(1024 * 1024 + 1)).await;
    assert!(matches!(oversized, None | Some(413)), "{oversized:?}");
    assert_eq!(sender.send("wevt_0", now(), SIGNING, &body("session.status_idled", &session.id)).await, Some(200));
    assert_eq!(polls(), before, "nothing of this looked into the queue");

    // A look that fails is not remembered as handled, so the sender's next attempt works.
    rig.fake.fault(Route::Poll, (0..4).map(|_| Reply::error(500)));
    assert_eq!(sender.send("wevt_1", now(), SIGNING, &started).await, Some(503));
    assert_eq!(sender.send("wevt_1", now(), SIGNING, &started).await, Some(200));
    assert_eq!(text(&rig.result(&session, &call).await), "woken");

    let before = polls();
    assert_eq!(sender.send("wevt_1", now(), SIGNING, &started).await, Some(200));
    assert_eq!(polls(), before, "a replayed delivery does nothing");
    working.end().await;
}
