//! Bodies of requests: read whole within a bound, and as JSON whatever their content type says.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use palisade_api::ErrorType;
use serde::de::DeserializeOwned;

use crate::error::{Answer, Fault};

/// How long a client may take to send a body.
const PATIENCE: Duration = Duration::from_secs(60);

fn too_large(most: usize) -> Fault {
    Fault::new(
        ErrorType::RequestTooLarge,
        format!("the request's body is larger than the {most} bytes that are accepted"),
    )
}

/// Reads and drops what is left of a refused body, so that the client sees the answer and not a reset connection.
async fn drain(mut body: Body, most: usize) {
    let all = async {
        let mut left = most;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // A client that sends slowly does not get the courtesy.
    let _ = tokio::time::timeout(Duration::from_secs(5), all).await;
}

/// Reads a body of at most `most` bytes.
pub(crate) async fn read(headers: &HeaderMap, mut body: Body, most: usize) -> Answer<Bytes> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Fault::invalid("content-encoding: compressed bodies are not accepted")
            .code("request_body_encoding_unsupported"));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > most) {
        drain(body, most.saturating_mul(2)).await;
        return Err(too_large(most));
    }
    let all = async {
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Fault::invalid("the request's body ended early"))?;
            let Ok(data) = frame.into_data() else { continue };
            if first.as_ref().map_or(0, Bytes::len) + rest.len() + data.len() > most {
                return Ok(None);
            }
            match &first {
                None => first = Some(data),
                Some(_) => rest.extend_from_slice(&data),
            }
        }
        let first = first.unwrap_or_default();
        // Most bodies come in one piece, which is not copied.
        if rest.is_empty() {
            return Ok(Some(first));
        }
        let mut whole = BytesMut::with_capacity(first.len() + rest.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&rest);
        Ok(Some(whole.freeze()))
    };
    match tokio::time::timeout(PATIENCE, all).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => {
            drain(body, most.saturating_mul(2)).await;
            Err(too_large(most))
        }
        Ok(Err(fault)) => Err(fault),
        Err(_) => Err(Fault::invalid("the request's body did not arrive in time")
            .status(StatusCode::REQUEST_TIMEOUT)
            .code("request_body_timeout")),
    }
}

/// Reads JSON; nothing at all counts as `{}`. An error names the field.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    let bytes = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { bytes };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|why| wrong("", why))?;
    reader.end().map_err(|why| Fault::invalid(format!("the request's body is not JSON: {why}")))?;
    Ok(value)
}

/// As [`json`], for a body whose field `field` may be a text or an object: when it is a bad object, says what is bad about it.
pub(crate) fn json_with<T: DeserializeOwned, F: DeserializeOwned>(bytes: &[u8], field: &str) -> Answer<T> {
    json(bytes).map_err(|fault| {
        let whole: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
        let part = whole.and_then(|mut whole| whole.get_mut(field).map(serde_json::Value::take));
        match part.filter(serde_json::Value::is_object).map(serde_path_to_error::deserialize::<_, F>) {
            Some(Err(why)) => wrong(field, why),
            _ => fault,
        }
    })
}

/// Refuses null for fields that cannot be cleared.
pub(crate) fn not_null(bytes: &[u8], fields: &[&str]) -> Answer<()> {
    let whole: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let null =
        |field: &&&str| whole.as_ref().and_then(|whole| whole.get(**field)).is_some_and(serde_json::Value::is_null);
    fields
        .iter()
        .find(null)
        .map_or(Ok(()), |field| Err(Fault::field(field, "cannot be cleared: leave it out to keep it")))
}

fn wrong(within: &str, why: serde_path_to_error::Error<serde_json::Error>) -> Fault {
    let path = dotted(&format!("{within}.{}", why.path()));
    let inner = why.into_inner();
    if inner.is_syntax() || inner.is_eof() {
        return Fault::invalid(format!("the request's body is not JSON: {inner}"));
    }
    // The place in the text says less than the path.
    let text = inner.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    if path.is_empty() { Fault::invalid(text) } else { Fault::field(path, text) }
}

/// `tools[0].name` as `tools.0.name`, which is how the API writes it.
fn dotted(path: &str) -> String {
    let dotted = path.replace('[', ".").replace(']', "");
    dotted.split('.').filter(|part| !part.is_empty() && *part != "?").collect::<Vec<_>>().join(".")
}
