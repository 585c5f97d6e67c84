//! Webhook mode: a delivery of `session.status_run_started` wakes the worker.
//!
//! A delivery is only a wake-up; nothing in it is trusted beyond that. It is remembered as handled when the look into the
//! queue that it caused is complete, so a failed one is sent again and works.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use palisade_api::Secret;
use ring::hmac;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// The largest delivery that is read.
const LARGEST: usize = 1024 * 1024;
/// How far a delivery's time may be from ours, in seconds.
const TOLERANCE: u64 = 300;
/// Handled deliveries that are remembered; a sender tries three times within minutes.
const REMEMBERED: usize = 10_000;
/// Signatures that one delivery may carry (several during a change of the secret).
const SIGNATURES: usize = 16;

/// Why the listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The signing secret cannot be one.
    #[error("the webhook signing secret must be \"whsec_\" followed by base64 of at least 16 bytes")]
    SigningKey,
    /// The address cannot be listened on.
    #[error("cannot listen for webhooks on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why a delivery is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Headers,
    Stale,
    Signature,
}

fn signing_key(secret: &Secret) -> Result<hmac::Key, WebhookError> {
    let encoded = secret.expose().trim().strip_prefix("whsec_").ok_or(WebhookError::SigningKey)?;
    let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| WebhookError::SigningKey)?);
    if bytes.len() < 16 {
        return Err(WebhookError::SigningKey);
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// Checks a delivery by the Standard Webhooks scheme and gives its id. `now` is in Unix seconds.
fn verify<'h>(key: &hmac::Key, headers: &'h HeaderMap, body: &[u8], now: u64) -> Result<&'h str, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).ok_or(Refusal::Headers);
    let (id, timestamp, signatures) =
        (header("webhook-id")?, header("webhook-timestamp")?, header("webhook-signature")?);
    let sent: u64 = timestamp.parse().map_err(|_| Refusal::Headers)?;
    if id.is_empty() || id.len() > 256 {
        return Err(Refusal::Headers);
    }
    if sent.abs_diff(now) > TOLERANCE {
        return Err(Refusal::Stale);
    }
    let mut signed = Vec::with_capacity(id.len() + timestamp.len() + body.len() + 2);
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        signed.extend_from_slice(part);
    }
    let genuine = signatures
        .split(' ')
        .take(SIGNATURES)
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        // Compares in constant time.
        .any(|signature| hmac::verify(key, &signed, &signature).is_ok());
    if genuine { Ok(id) } else { Err(Refusal::Signature) }
}

#[derive(Deserialize)]
struct Delivery {
    #[serde(default)]
    data: DeliveryData,
}

#[derive(Default, Deserialize)]
struct DeliveryData {
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Default)]
struct Known {
    handled: HashSet<String>,
    order: VecDeque<String>,
    in_flight: HashSet<String>,
}

struct Shared {
    key: hmac::Key,
    clock: fn() -> u64,
    known: Mutex<Known>,
    wake: mpsc::Sender<oneshot::Sender<bool>>,
}

/// A bound webhook listener.
pub(crate) struct Listener {
    key: hmac::Key,
    clock: fn() -> u64,
    socket: TcpListener,
}

impl Listener {
    /// Listens on `address`; `clock` gives Unix seconds.
    pub(crate) async fn bind(address: SocketAddr, secret: &Secret, clock: fn() -> u64) -> Result<Self, WebhookError> {
        let key = signing_key(secret)?;
        let socket = TcpListener::bind(address).await.map_err(|source| WebhookError::Listen { address, source })?;
        Ok(Self { key, clock, socket })
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// Serves deliveries at any path until `shutdown`; each is answered when its wake-up has been dealt with.
    pub(crate) async fn serve(self, wake: mpsc::Sender<oneshot::Sender<bool>>, shutdown: CancellationToken) {
        let shared = Arc::new(Shared { key: self.key, clock: self.clock, known: Mutex::default(), wake });
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/", post(deliver))
            .route("/{*path}", post(deliver))
            .layer(DefaultBodyLimit::max(LARGEST))
            .with_state(shared);
        let served = axum::serve(self.socket, router).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the webhook listener failed");
        }
    }
}

async fn deliver(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let id = match verify(&shared.key, &headers, &body, (shared.clock)()) {
        Ok(id) => id.to_owned(),
        Err(refusal) => {
            tracing::warn!(?refusal, "webhook delivery refused");
            return StatusCode::UNAUTHORIZED;
        }
    };
    let Ok(delivery) = serde_json::from_slice::<Delivery>(&body) else { return StatusCode::BAD_REQUEST };
    if delivery.data.kind != "session.status_run_started" {
        return StatusCode::OK;
    }
    {
        let mut known = shared.known();
        if known.handled.contains(&id) {
            return StatusCode::OK;
        }
        if !known.in_flight.insert(id.clone()) {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
    }
    // The sender may hang up; the note that the delivery is in flight must not outlive it.
    let flight = Flight { shared: &shared, id: &id };
    let (answer, answered) = oneshot::channel();
    let woken = shared.wake.try_send(answer).is_ok();
    let drained =
        woken && tokio::time::timeout(Duration::from_secs(60), answered).await.is_ok_and(|drained| drained == Ok(true));
    drop(flight);
    if !drained {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let mut known = shared.known();
    if known.handled.insert(id.clone()) {
        known.order.push_back(id);
    }
    while known.order.len() > REMEMBERED {
        if let Some(oldest) = known.order.pop_front() {
            known.handled.remove(&oldest);
        }
    }
    StatusCode::OK
}

impl Shared {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Flight<'a> {
    shared: &'a Shared,
    id: &'a str,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.shared.known().in_flight.remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_of_standard_webhooks() {
        // The published example of the scheme.
        let key = signing_key(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        let body = br#"{"test": 2432232314}"#;
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
        headers.insert("webhook-timestamp", "1614265330".parse().unwrap());
        let good = "v1,AAAA v2,x v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        headers.insert("webhook-signature", good.parse().unwrap());
        let at = 1_614_265_330;
        assert_eq!(verify(&key, &headers, body, at), Ok("msg_p5jXN8AQM9LWM0D4loKWxJek"));
        assert_eq!(verify(&key, &headers, b"{}", at), Err(Refusal::Signature));
        assert_eq!(verify(&key, &headers, body, at + 301), Err(Refusal::Stale));
        assert_eq!(verify(&key, &headers, body, at - 301), Err(Refusal::Stale));
        headers.remove("webhook-signature");
        assert_eq!(verify(&key, &headers, body, at), Err(Refusal::Headers));
        for bad in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_%", "whsec_AAAA"] {
            assert!(signing_key(&Secret::new(bad)).is_err());
        }
    }
}
