//! Heads of requests: placeholders become values, or the request is refused.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Uri};
use palisade_api::Secret;
use zeroize::Zeroizing;

use super::answer::Expected;
use super::decode::limit_encodings;
use super::replace::{BodyPlan, Destination, Escape, Replacer, Task, WHOLE, Whole, values_of};
use super::scan::Anchors;
use super::sigv4::{self, Signed, Signing};
use super::table::{Entry, Role};
use super::{Broker, Misuse, Wire};
use crate::Authority;

/// What was put into the head of a request, and what is to be done next.
#[derive(Debug)]
pub struct Injection {
    /// References of the credentials whose values stand in the head now.
    pub references: Vec<String>,
    /// What to do with the body.
    pub body: BodyPlan,
    /// For [`Broker::answer`].
    pub answer: Expected,
}

/// The placeholders of a head, and the values of those that may stand there.
#[derive(Default)]
struct Seen {
    entries: HashMap<String, Arc<Entry>>,
    values: HashMap<String, Arc<Secret>>,
}

impl Broker {
    /// Puts values into the head of a request that goes to `authority`, and says what to do with its body. On an error nothing
    /// may be sent.
    ///
    /// `Accept-Encoding` is limited to what can be searched. Where the length of the body may change, `Content-Length` is taken
    /// out of `parts` (the body goes on chunked), or set by [`Whole::finish`].
    pub async fn inject(&self, parts: &mut Parts, wire: Wire, authority: &Authority) -> Result<Injection, Misuse> {
        let to = Destination { wire, authority: authority.clone() };
        let mut answer = Expected::new(self.table.credentials(), parts, authority);
        let guard = Replacer::guard(Arc::clone(&self.table), Arc::clone(&self.known), to.clone());
        let seen = self.look(parts, wire, authority)?;
        let in_body =
            if self.table.credentials().is_empty() { Vec::new() } else { self.table.in_body(wire, authority) };
        if answer.named || !self.known.is_empty() {
            answer.limited = true;
            limit_encodings(&mut parts.headers);
        }
        if let Some(key) = seen.entries.values().find(|entry| entry.role == Role::AwsKeyId)
            && sigv4::is_signed(parts)
        {
            return self.sign(parts, Arc::clone(key), seen, guard, to, answer).await;
        }
        let references = self.replace(parts, wire, authority, seen).await?;
        let body = self.body(parts, in_body, guard, to).await;
        Ok(Injection { references, body, answer })
    }

    /// Finds placeholders of any session, as they are or encoded. Most requests end here.
    fn look(&self, parts: &Parts, wire: Wire, authority: &Authority) -> Result<Seen, Misuse> {
        let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
        let mut text =
            Vec::with_capacity(path.len() + parts.headers.values().map(|value| value.len() + 1).sum::<usize>());
        text.extend_from_slice(path.as_bytes());
        for value in parts.headers.values() {
            text.push(b'\n');
            text.extend_from_slice(value.as_bytes());
        }
        let guard = self.table.guard();
        let mut seen = Seen::default();
        for (owner, at, length) in Anchors::finds(&**guard, &text) {
            let core = guard.core(owner, &text[at..at + length]);
            let entry = core.and_then(|core| self.table.entry(&core)).ok_or(Misuse::Replay)?;
            entry.places(wire, authority)?;
            seen.entries.insert(entry.text.clone(), entry);
        }
        Ok(seen)
    }

    async fn replace(
        &self,
        parts: &mut Parts,
        wire: Wire,
        authority: &Authority,
        mut seen: Seen,
    ) -> Result<Vec<String>, Misuse> {
        let mut references = Vec::new();
        if seen.entries.is_empty() {
            return Ok(references);
        }
        // First where they stand, so that no value is asked for in vain; then the values; then putting them in.
        let mut wanted: Vec<Arc<Entry>> = Vec::new();
        let mut check = |text: &[u8], place| {
            for (entry, _) in self.whole(text) {
                entry.check(wire, authority, place)?;
                wanted.push(entry);
            }
            Ok(())
        };
        for (name, value) in &parts.headers {
            match basic(name, value) {
                Some((_, decoded)) => check(&decoded, "header")?,
                None => check(value.as_bytes(), "header")?,
            }
        }
        check(parts.uri.path().as_bytes(), "path")?;
        check(parts.uri.query().unwrap_or_default().as_bytes(), "query")?;
        for entry in wanted {
            if !seen.values.contains_key(&entry.text) {
                let value = entry.value().await?;
                self.known.add(&value, &entry.text);
                seen.values.insert(entry.text.clone(), value);
                if !references.contains(&entry.reference) {
                    references.push(entry.reference.clone());
                }
            }
        }
        for (name, value) in &mut parts.headers {
            let replaced = match basic(name, value) {
                Some((scheme, decoded)) => self.put(&decoded, Escape::Plain, &seen).map(|plain| {
                    let mut out = Zeroizing::new(scheme);
                    out.extend_from_slice(Zeroizing::new(STANDARD.encode(&plain[..])).as_bytes());
                    out
                }),
                None => self.put(value.as_bytes(), Escape::Plain, &seen),
            };
            if let Some(replaced) = replaced {
                let entry = self.whole(value.as_bytes()).into_iter().next().map(|(entry, _)| entry.reference.clone());
                let mut new = HeaderValue::from_bytes(&replaced).map_err(|_| Misuse::Unusable {
                    reference: entry.unwrap_or_else(|| references.join(", ")),
                    why: "it has characters that a header cannot hold",
                })?;
                new.set_sensitive(true);
                *value = new;
            }
        }
        let path = self.put(parts.uri.path().as_bytes(), Escape::Percent, &seen);
        let query = parts.uri.query().and_then(|query| self.put(query.as_bytes(), Escape::Percent, &seen));
        if path.is_some() || query.is_some() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let path = path.map_or_else(|| parts.uri.path().to_owned(), |path| text(&path));
            let query = query.map(|query| text(&query)).or_else(|| parts.uri.query().map(str::to_owned));
            set_path_and_query(parts, path, query).map_err(|()| Misuse::Unusable {
                reference: references.join(", "),
                why: "the address would be longer than 64 KiB",
            })?;
        }
        Ok(references)
    }

    /// Whole placeholders of the session, as they are, and where they begin.
    fn whole(&self, text: &[u8]) -> Vec<(Arc<Entry>, usize)> {
        let guard = self.table.guard();
        let mut all = Vec::new();
        for (owner, at, length) in Anchors::finds(&**guard, text) {
            let entry = guard
                .core(owner, &text[at..at + length])
                .filter(|_| guard.is_text(owner))
                .and_then(|core| self.table.entry(&core));
            if let Some(entry) = entry
                && let Some(start) = at.checked_sub(entry.core_at)
                && text[start..].starts_with(entry.text.as_bytes())
            {
                all.push((entry, start));
            }
        }
        all
    }

    fn put(&self, text: &[u8], escape: Escape, seen: &Seen) -> Option<Zeroizing<Vec<u8>>> {
        let all = self.whole(text);
        if all.is_empty() {
            return None;
        }
        let mut out = Zeroizing::new(Vec::with_capacity(text.len() + 256));
        let mut copied = 0;
        for (entry, start) in all {
            let Some(value) = seen.values.get(&entry.text) else { continue };
            if start < copied {
                continue;
            }
            out.extend_from_slice(&text[copied..start]);
            escape.write(value, &mut out);
            copied = start + entry.text.len();
        }
        out.extend_from_slice(&text[copied..]);
        Some(out)
    }

    async fn sign(
        &self,
        parts: &mut Parts,
        key: Arc<Entry>,
        seen: Seen,
        guard: Replacer,
        to: Destination,
        answer: Expected,
    ) -> Result<Injection, Misuse> {
        if let Some(other) =
            seen.entries.values().find(|entry| entry.role != Role::AwsKeyId || !Arc::ptr_eq(entry, &key))
        {
            let why = "another placeholder stands in it, which the signature covers";
            return Err(Misuse::Signature { reference: other.reference.clone(), why });
        }
        let signing = Signing::prepare(parts, &key, to.wire, &to.authority).await?;
        for secret in signing.secrets() {
            key.usable(&secret)?;
            let text = self.table.secret_of(&key.reference).unwrap_or_else(|| key.text.clone());
            self.known.add(&secret, &text);
        }
        self.known.add(&signing.key_id(), &key.text);
        let references = vec![key.reference.clone()];
        let body = match signing.sign_head(parts)? {
            Signed::Head => BodyPlan::Replace(guard),
            Signed::Pieces(pieces) => BodyPlan::Replace(guard.signing(pieces)),
            Signed::NeedsBody => BodyPlan::Whole(Whole {
                table: Arc::clone(&self.table),
                known: Arc::clone(&self.known),
                destination: to,
                task: Task::Sign(Box::new(signing)),
            }),
        };
        Ok(Injection { references, body, answer })
    }

    async fn body(&self, parts: &mut Parts, in_body: Vec<Arc<Entry>>, guard: Replacer, to: Destination) -> BodyPlan {
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        // `Transfer-Encoding` says nothing here: the proxy has undone it.
        let without = length == Some(0)
            || length.is_none() && matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let framed =
            parts.headers.get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        // Frames state their lengths: nothing can be put in there, so that a placeholder in them is one in the wrong place.
        if in_body.is_empty() || without || framed {
            return BodyPlan::Replace(guard);
        }
        let escape = Escape::of_body(&parts.headers);
        if length.is_some_and(|length| length <= WHOLE) {
            return BodyPlan::Whole(Whole {
                table: Arc::clone(&self.table),
                known: Arc::clone(&self.known),
                destination: to,
                task: Task::Replace(escape),
            });
        }
        parts.headers.remove(CONTENT_LENGTH);
        BodyPlan::Replace(guard.replacing(escape, values_of(&in_body).await))
    }
}

/// Some clients leave the padding out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is in a header with the scheme `Basic`: the scheme as it was written, and what was encoded.
fn basic(name: &HeaderName, value: &HeaderValue) -> Option<(Vec<u8>, Zeroizing<Vec<u8>>)> {
    if name != AUTHORIZATION && name != PROXY_AUTHORIZATION {
        return None;
    }
    let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = LENIENT.decode(rest.trim_ascii()).ok()?;
    Some((scheme.to_vec(), Zeroizing::new(decoded)))
}

/// Another path and query for the request, with the rest of its address as it was.
pub(super) fn set_path_and_query(parts: &mut Parts, path: String, query: Option<String>) -> Result<(), ()> {
    let text = match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut uri = parts.uri.clone().into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(text).map_err(|_| ())?);
    parts.uri = Uri::from_parts(uri).map_err(|_| ())?;
    Ok(())
}
