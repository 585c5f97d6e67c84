//! What the worker reads from the control plane's answers, and nothing more.
//!
//! These are deliberately partial views. A worker meets control planes of several ages and vendors: a field it does not
//! act on must never be able to stop it, and the text of messages is skipped without being kept in memory.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::collections::HashMap;

use palisade_api::Secret;
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// A claimed work item (the id is opaque, the hosted service uses the session's own id).
#[derive(Debug, Deserialize)]
pub(crate) struct WorkItem {
    pub(crate) id: String,
    pub(crate) environment_id: Option<String>,
    pub(crate) data: WorkData,
    #[serde(default)]
    pub(crate) secret: Option<Secret>,
}

/// What the item is for; anything but `session` is acknowledged and force-stopped.
#[derive(Debug, Deserialize)]
pub(crate) struct WorkData {
    #[serde(rename = "type", default)]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) id: String,
}

/// Reads a poll answer. `None` is an empty queue, in any of the four forms that exist: no body (204 or 200), `null`, `{}`.
pub(crate) fn work_item(body: &[u8]) -> Result<Option<WorkItem>, serde_json::Error> {
    let trimmed = body.trim_ascii();
    if trimmed.is_empty() || trimmed == b"null" {
        return Ok(None);
    }
    if trimmed.starts_with(b"{") && trimmed.ends_with(b"}") && trimmed[1..trimmed.len() - 1].trim_ascii().is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(trimmed).map(Some)
}

/// Why a `secret` gave no sessions token. Carries nothing of the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("the secret is not base64url")]
    Encoding,
    #[error("the secret does not hold a JSON object with a sessions_token")]
    Shape,
}

/// Decodes the `secret` of a work item: base64url, padding optional, of `{"sessions_token": …}`. `api_base_url` in it is
/// ignored on purpose: a queue answer must not be able to redirect the worker's calls.
pub(crate) fn sessions_token(secret: &Secret) -> Result<Secret, SecretError> {
    #[derive(Deserialize)]
    struct Bundle {
        sessions_token: Secret,
    }
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let decoded = GeneralPurpose::new(&URL_SAFE, config).decode(secret.expose().trim());
    let decoded = Zeroizing::new(decoded.map_err(|_| SecretError::Encoding)?);
    let bundle: Bundle = serde_json::from_slice(&decoded).map_err(|_| SecretError::Shape)?;
    if bundle.sessions_token.is_blank() {
        return Err(SecretError::Shape);
    }
    Ok(bundle.sessions_token)
}

/// The answer to a heartbeat.
#[derive(Debug, Deserialize)]
pub(crate) struct Heartbeat {
    #[serde(default)]
    pub(crate) last_heartbeat: String,
    #[serde(default = "yes")]
    pub(crate) lease_extended: bool,
    #[serde(default)]
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) ttl_seconds: Option<u64>,
}

fn yes() -> bool {
    true
}

/// The session, as far as a worker looks at it.
#[derive(Debug, Deserialize)]
pub(crate) struct Session {
    #[serde(default)]
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) archived_at: Option<String>,
    #[serde(default)]
    pub(crate) agent: Option<SessionAgent>,
    #[serde(default)]
    pub(crate) vault_ids: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) resources: Option<Vec<SessionResource>>,
    #[serde(default, deserialize_with = "texts")]
    pub(crate) metadata: HashMap<String, String>,
}

/// A map's texts; whatever else a control plane has there is left out.
fn texts<'de, D: serde::Deserializer<'de>>(from: D) -> Result<HashMap<String, String>, D::Error> {
    let found = Option::<HashMap<String, serde_json::Value>>::deserialize(from)?.unwrap_or_default();
    Ok(found.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned()))).collect())
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct SessionAgent {
    #[serde(default)]
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// A number at some control planes, a text at others.
    #[serde(default)]
    pub(crate) version: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) skills: Option<Vec<SkillRef>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SkillRef {
    #[serde(default)]
    pub(crate) skill_id: String,
    #[serde(default)]
    pub(crate) version: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SessionResource {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
}

/// One session event, reduced to what decides about a tool call.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Event {
    #[serde(default)]
    pub(crate) id: String,
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) processed_at: Option<String>,
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) input: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) evaluated_permission: Option<String>,
    #[serde(default)]
    pub(crate) session_thread_id: Option<String>,
    #[serde(default)]
    pub(crate) tool_use_id: Option<String>,
    #[serde(default)]
    pub(crate) result: Option<String>,
    #[serde(default)]
    pub(crate) stop_reason: Option<StopReason>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct StopReason {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
}

/// A page of events. Every event is kept as text until it is read, so that one that cannot be read costs only itself.
#[derive(Debug, Deserialize)]
pub(crate) struct EventPage<'a> {
    #[serde(borrow, default)]
    pub(crate) data: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) next_page: Option<Cow<'a, str>>,
}

/// A version of a skill.
#[derive(Debug, Deserialize)]
pub(crate) struct SkillVersion {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) name: String,
}

/// The error envelope, as far as it is shown or acted upon.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ErrorEnvelope {
    #[serde(default)]
    pub(crate) error: ErrorBody,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct ErrorBody {
    #[serde(default)]
    pub(crate) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_forms_of_an_empty_queue_are_empty() {
        for body in ["", "null", "{}", " \n", " null\n", "{ }"] {
            assert!(work_item(body.as_bytes()).unwrap().is_none(), "{body:?}");
        }
        assert!(work_item(b"{\"id\":1}").is_err());
        let item = work_item(br#"{"id":"sesn_1","data":{"type":"session","id":"sesn_1"},"new":[1]}"#).unwrap().unwrap();
        assert_eq!((item.id.as_str(), item.data.id.as_str()), ("sesn_1", "sesn_1"));
    }

    #[test]
    fn sessions_token_is_read_with_and_without_padding() {
        let bundle = br#"{"sessions_token":"sk-ant-req-1","api_base_url":"http://elsewhere"}"#;
        for encoded in [
            base64::engine::general_purpose::URL_SAFE.encode(bundle),
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bundle),
        ] {
            assert_eq!(sessions_token(&Secret::new(encoded)).unwrap().expose(), "sk-ant-req-1");
        }
        assert_eq!(sessions_token(&Secret::new("%%")).unwrap_err(), SecretError::Encoding);
        let empty = base64::engine::general_purpose::URL_SAFE.encode(br#"{"sessions_token":""}"#);
        assert_eq!(sessions_token(&Secret::new(empty)).unwrap_err(), SecretError::Shape);
    }
}
