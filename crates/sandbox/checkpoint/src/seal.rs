//! What is written ends with a hash of itself, so that a torn or changed file is told from a whole one.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Id;

/// A record as text: JSON on one line, its hash on the next.
pub(crate) fn text(record: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_string(record).expect("a record has only text and numbers");
    format!("{json}\n{}\n", Id::of(json.as_bytes())).into_bytes()
}

/// The record in such a text, or what is wrong with it.
pub(crate) fn record<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8")?;
    let (json, check) = text.strip_suffix('\n').and_then(|it| it.split_once('\n')).ok_or("it is not a record")?;
    if check.parse::<Id>().ok() != Some(Id::of(json.as_bytes())) {
        return Err("its check does not fit".to_owned());
    }
    serde_json::from_str(json).map_err(|why| format!("it is not a record of this version: {why}"))
}

/// Ends bytes with their hash.
pub(crate) fn close(mut body: Vec<u8>) -> Vec<u8> {
    let check = Id::of(&body);
    body.extend_from_slice(&check.0);
    body
}

/// The bytes before their hash, if it is theirs.
pub(crate) fn open(bytes: &[u8]) -> Option<&[u8]> {
    let (body, check) = bytes.split_last_chunk::<32>()?;
    (Id::of(body).0 == *check).then_some(body)
}
