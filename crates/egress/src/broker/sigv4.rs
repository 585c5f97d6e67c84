//! AWS Signature Version 4, made again: the client signed with placeholder keys, the upstream must see the real ones'.
//!
//! As documented by AWS under "Create a signed AWS API request" and, for S3, "Authenticating Requests". The client's own choice
//! of signed headers, date and scope is kept.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use palisade_api::Secret;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode};
use ring::{digest, hmac};
use zeroize::Zeroizing;

use super::credential::AwsKeys;
use super::forms::hex;
use super::pieces::Pieces;
use super::table::Entry;
use super::{Misuse, Wire};
use crate::Authority;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const CONTENT_HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `x-amz-content-sha256` of a body whose pieces are signed, with trailers that are signed or without.
const IN_PIECES: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const IN_PIECES_WITH_TRAILERS: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";

/// What is left to do when the head is done.
pub(super) enum Signed {
    /// Nothing.
    Head,
    /// The pieces of the body.
    Pieces(Box<Pieces>),
    /// Everything: the signature covers the body.
    NeedsBody,
}

/// What is needed to sign a request again.
pub(super) struct Signing {
    keys: AwsKeys,
    reference: String,
    wire: Wire,
    authority: Authority,
    /// `date/region/service/aws4_request`.
    scope: String,
    /// In the order of their names.
    signed: Vec<String>,
    presigned: bool,
}

/// Whether the request is signed, in whichever way of AWS.
pub(super) fn is_signed(parts: &Parts) -> bool {
    let header = parts.headers.get(AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"AWS4-"));
    header || parts.uri.query().is_some_and(|query| query.contains("X-Amz-Algorithm="))
}

impl Signing {
    /// Reads the client's signature, which names the placeholder of `entry`, and takes the real keys.
    pub(super) async fn prepare(
        parts: &Parts,
        entry: &Arc<Entry>,
        wire: Wire,
        to: &Authority,
    ) -> Result<Signing, Misuse> {
        let reference = entry.reference.clone();
        let wrong = |why| Misuse::Signature { reference: reference.clone(), why };
        let presigned = !parts.headers.contains_key(AUTHORIZATION);
        let (credential, signed) = if presigned {
            let parameter = |name: &str| {
                let query = parts.uri.query().unwrap_or_default();
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| percent_decode(value.as_bytes()).decode_utf8_lossy().into_owned())
            };
            if parameter("X-Amz-Algorithm").as_deref() != Some(ALGORITHM) {
                return Err(wrong("only AWS4-HMAC-SHA256 can be; SigV4a is not supported"));
            }
            (parameter("X-Amz-Credential"), parameter("X-Amz-SignedHeaders"))
        } else {
            let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let Some(rest) = header.strip_prefix(ALGORITHM) else {
                return Err(wrong("only AWS4-HMAC-SHA256 can be; SigV4a is not supported"));
            };
            let field = |name: &str| {
                let mut fields = rest.split(',').filter_map(|field| field.trim().split_once('='));
                fields.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
            };
            (field("Credential"), field("SignedHeaders"))
        };
        let scope = credential
            .as_deref()
            .and_then(|credential| credential.strip_prefix(entry.text.as_str()))
            .and_then(|rest| rest.strip_prefix('/'))
            .filter(|scope| scope.split('/').count() == 4 && scope.ends_with("/aws4_request"))
            .ok_or_else(|| wrong("its Credential is not KEY/date/region/service/aws4_request"))?
            .to_owned();
        let mut signed: Vec<String> = signed.unwrap_or_default().split(';').map(str::to_ascii_lowercase).collect();
        signed.sort();
        signed.dedup();
        if !signed.iter().any(|name| name == "host") {
            return Err(wrong("it does not sign the host"));
        }
        let value = entry.raw_value().await?;
        let keys: AwsKeys = serde_json::from_str(value.expose()).map_err(|_| Misuse::Unusable {
            reference: reference.clone(),
            why: "it is not JSON with access_key_id and secret_access_key",
        })?;
        Ok(Signing { keys, reference, wire, authority: to.clone(), scope, signed, presigned })
    }

    /// Values that must not come back, with nothing of the access key's name.
    pub(super) fn secrets(&self) -> Vec<Arc<Secret>> {
        let token = self.keys.session_token.as_ref().map(Secret::expose);
        [Some(self.keys.secret_access_key.expose()), token]
            .into_iter()
            .flatten()
            .map(|text| Arc::new(Secret::new(text)))
            .collect()
    }

    /// The name of the real key.
    pub(super) fn key_id(&self) -> Arc<Secret> {
        Arc::new(Secret::new(self.keys.access_key_id.expose()))
    }

    fn service(&self) -> &str {
        self.scope.split('/').nth(2).unwrap_or_default()
    }

    fn is_s3(&self) -> bool {
        matches!(self.service(), "s3" | "s3express" | "s3-object-lambda" | "s3-outposts")
    }

    /// Signs at once when the request says what the hash of its body is, that it is not signed, or that its pieces are. Else
    /// the body is needed.
    pub(super) fn sign_head(&self, parts: &mut Parts) -> Result<Signed, Misuse> {
        let wrong = |why| Misuse::Signature { reference: self.reference.clone(), why };
        let mut pieces = None;
        let stated = parts.headers.get(CONTENT_HASH).map(|value| value.to_str().unwrap_or_default().to_owned());
        let hash = match stated {
            Some(stated) if stated.len() == 64 && stated.bytes().all(|byte| byte.is_ascii_hexdigit()) => stated,
            Some(stated) if stated == "UNSIGNED-PAYLOAD" || stated == "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => stated,
            Some(stated) if !self.presigned && stated == IN_PIECES => {
                pieces = Some(false);
                stated
            }
            Some(stated) if !self.presigned && stated == IN_PIECES_WITH_TRAILERS => {
                pieces = Some(true);
                stated
            }
            Some(stated) if stated.starts_with("STREAMING-") => {
                return Err(wrong(
                    "the pieces of its body are signed in a way that is not supported: SigV4a, or events",
                ));
            }
            Some(_) => return Err(wrong("its x-amz-content-sha256 is neither a hash nor UNSIGNED-PAYLOAD")),
            None if self.presigned && self.is_s3() => "UNSIGNED-PAYLOAD".to_owned(),
            None => return Ok(Signed::NeedsBody),
        };
        let (date, seed) = self.sign(parts, &hash)?;
        let Some(trailers) = pieces else { return Ok(Signed::Head) };
        let (key, reference) = (self.signing_key(), self.reference.clone());
        Ok(Signed::Pieces(Box::new(Pieces::new(key, reference, date, self.scope.clone(), seed, trailers))))
    }

    /// Signs with the hash of the body.
    pub(super) fn sign_body(&self, parts: &mut Parts, body: &[u8]) -> Result<(), Misuse> {
        let hash = hex_text(digest::digest(&digest::SHA256, body).as_ref());
        self.sign(parts, &hash).map(drop)
    }

    /// The date of the signature, and the signature.
    fn sign(&self, parts: &mut Parts, payload: &str) -> Result<(String, String), Misuse> {
        let wrong = |why| Misuse::Signature { reference: self.reference.clone(), why };
        let mut signed = self.signed.clone();
        let token = self.keys.session_token.as_ref();
        if self.presigned {
            parts.headers.remove(&SECURITY_TOKEN);
        } else {
            match token {
                Some(token) => {
                    let mut value = HeaderValue::from_str(token.expose())
                        .map_err(|_| wrong("the session token is no header value"))?;
                    value.set_sensitive(true);
                    parts.headers.insert(&SECURITY_TOKEN, value);
                    signed.push(SECURITY_TOKEN.as_str().to_owned());
                    signed.sort();
                    signed.dedup();
                }
                None => {
                    parts.headers.remove(&SECURITY_TOKEN);
                    signed.retain(|name| name != SECURITY_TOKEN.as_str());
                }
            }
        }
        let names = signed.join(";");
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let date;
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((encoded_again(key), encoded_again(value)));
        }
        let key_id = self.keys.access_key_id.expose();
        if self.presigned {
            let find = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            date = find("X-Amz-Date").ok_or_else(|| wrong("it has no X-Amz-Date"))?;
            pairs.retain(|(key, _)| {
                !matches!(key.as_str(), "X-Amz-Signature" | "X-Amz-Credential" | "X-Amz-Security-Token")
            });
            pairs.push(("X-Amz-Credential".into(), encode(format!("{key_id}/{}", self.scope).as_bytes())));
            if let Some(token) = token {
                pairs.push(("X-Amz-Security-Token".into(), encode(token.expose().as_bytes())));
            }
        } else {
            let header = parts.headers.get("x-amz-date").and_then(|value| value.to_str().ok());
            date = header.ok_or_else(|| wrong("it has no x-amz-date"))?.to_owned();
        }
        let mut sorted = pairs.clone();
        sorted.sort();
        let canonical_query: Vec<String> = sorted.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let canonical = Zeroizing::new(format!(
            "{}\n{}\n{}\n{}\n{names}\n{payload}",
            parts.method,
            self.canonical_path(parts.uri.path()),
            canonical_query.join("&"),
            self.canonical_headers(&parts.headers, &signed),
        ));
        let hash = hex_text(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("{ALGORITHM}\n{date}\n{}\n{hash}", self.scope);
        let signature = hex_text(hmac::sign(&self.signing_key(), text.as_bytes()).as_ref());
        if self.presigned {
            pairs.push(("X-Amz-Signature".into(), signature.clone()));
            let query: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
            super::inject::set_path_and_query(parts, parts.uri.path().to_owned(), Some(query.join("&")))
                .map_err(|()| wrong("its query cannot be written again"))?;
        } else {
            let value =
                format!("{ALGORITHM} Credential={key_id}/{}, SignedHeaders={names}, Signature={signature}", self.scope);
            let value = HeaderValue::from_str(&value).map_err(|_| wrong("the access key id is no header value"))?;
            parts.headers.insert(AUTHORIZATION, value);
        }
        Ok((date, signature))
    }

    fn signing_key(&self) -> hmac::Key {
        let first = Zeroizing::new(format!("AWS4{}", self.keys.secret_access_key.expose()));
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, first.as_bytes());
        for part in self.scope.split('/') {
            key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
        }
        key
    }

    /// S3 takes the path as it is sent; all others encode it once more.
    fn canonical_path(&self, path: &str) -> String {
        let path = if path.is_empty() { "/" } else { path };
        if self.is_s3() {
            return path
                .split('/')
                .map(|segment| encode(&percent_decode(segment.as_bytes()).collect::<Vec<u8>>()))
                .collect::<Vec<_>>()
                .join("/");
        }
        let mut segments: Vec<&str> = Vec::new();
        for segment in path.split('/') {
            match segment {
                "" | "." => {}
                ".." => {
                    segments.pop();
                }
                segment => segments.push(segment),
            }
        }
        let mut out = String::from("/");
        out.push_str(&segments.iter().map(|segment| encode(segment.as_bytes())).collect::<Vec<_>>().join("/"));
        if path.len() > 1 && path.ends_with('/') && out.len() > 1 {
            out.push('/');
        }
        out
    }

    fn canonical_headers(&self, headers: &HeaderMap, signed: &[String]) -> String {
        let mut out = String::new();
        for name in signed {
            let values: Vec<String> = headers
                .get_all(name.as_str())
                .iter()
                .map(|value| {
                    String::from_utf8_lossy(value.as_bytes()).split_ascii_whitespace().collect::<Vec<_>>().join(" ")
                })
                .collect();
            let value = if values.is_empty() && name == HOST.as_str() { self.host() } else { values.join(",") };
            out.push_str(name);
            out.push(':');
            out.push_str(&value);
            out.push('\n');
        }
        out
    }

    fn host(&self) -> String {
        let usual = match self.wire {
            Wire::Https => 443,
            Wire::Http => 80,
        };
        if self.authority.port == usual { self.authority.host.to_string() } else { self.authority.to_string() }
    }
}

/// Decoded, and encoded as AWS does.
fn encoded_again(text: &str) -> String {
    encode(&percent_decode(text.replace('+', "%20").as_bytes()).collect::<Vec<u8>>())
}

fn encode(bytes: &[u8]) -> String {
    percent_encoding::percent_encode(bytes, UNRESERVED).to_string()
}

fn hex_text(bytes: &[u8]) -> String {
    hex(bytes).into_iter().map(char::from).collect()
}
