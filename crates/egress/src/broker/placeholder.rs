//! Placeholders: they look like what they stand for, say nothing about it, and are known again as ours.
//!
//! Each holds a core of `marker`, `nonce` and `tag`. The marker is the same in all placeholders of a service, so that one search
//! for a few bytes finds any of them in any session's traffic; the tag is a truncated HMAC of the nonce, so that a text that only
//! looks like one is left alone, while one of another session, or of one that is gone, is known and refused.

use std::fmt;
use std::sync::{Arc, OnceLock};

use palisade_api::Secret;
use ring::hmac;
use zeroize::Zeroizing;

use super::BrokerError;
use super::guard::Guard;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const LOWER: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const UPPER: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// What placeholders of a credential look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// As the value's well-known public prefix says, looked at once when the session is prepared; else [`Shape::Opaque`].
    AsValue,
    /// `palisade_` and base32.
    Opaque,
    /// A GitHub token with this prefix (`ghp_`, `gho_`, `ghu_`, `ghs_`, `ghr_`), its length and checksum.
    GitHub(&'static str),
    /// `github_pat_`, in two parts.
    GitHubFineGrained,
    /// `sk-ant-api03-…AA`, or with `oat01`, `ort01`, `admin01` in its place.
    Anthropic(&'static str),
    /// `sk-`, `sk-proj-`, `sk-svcacct-`.
    OpenAi(&'static str),
    /// A Slack token: `xoxb-` and the like.
    Slack(&'static str),
    /// `glpat-`.
    GitLab,
    /// `npm_`, with its checksum.
    Npm,
    /// `pypi-AgEIcHlwaS5vcmc…`.
    PyPi,
    /// A JWT: a header, claims that say nothing and never expire, a signature.
    Jwt,
    /// A version 4 UUID. It has room for 60 random and 28 keyed bits only.
    Uuid,
    /// An AWS access key id, an identifier rather than a secret: 40 random and 20 keyed bits.
    AwsKeyId,
    /// An AWS secret key: 40 characters.
    AwsSecretKey,
}

impl Shape {
    /// The shape of a value, by public prefixes alone.
    pub fn of(value: &Secret) -> Shape {
        let text = value.expose();
        let starts = |prefixes: &[&'static str]| prefixes.iter().copied().find(|prefix| text.starts_with(prefix));
        if let Some(prefix) = starts(&["ghp_", "gho_", "ghu_", "ghs_", "ghr_"]) {
            return Shape::GitHub(prefix);
        }
        if let Some(prefix) = starts(&["sk-ant-api03-", "sk-ant-oat01-", "sk-ant-ort01-", "sk-ant-admin01-"]) {
            return Shape::Anthropic(prefix);
        }
        if let Some(prefix) = starts(&["sk-proj-", "sk-svcacct-", "sk-"]) {
            return if text.starts_with("sk-ant-") { Shape::Anthropic("sk-ant-api03-") } else { Shape::OpenAi(prefix) };
        }
        if let Some(prefix) = starts(&["xoxb-", "xoxp-", "xapp-"]) {
            return Shape::Slack(prefix);
        }
        if text.starts_with("github_pat_") {
            return Shape::GitHubFineGrained;
        }
        if text.starts_with("glpat-") {
            return Shape::GitLab;
        }
        if text.starts_with("npm_") {
            return Shape::Npm;
        }
        if text.starts_with("pypi-") {
            return Shape::PyPi;
        }
        if text.len() == 20 && (text.starts_with("AKIA") || text.starts_with("ASIA")) {
            return Shape::AwsKeyId;
        }
        if text.starts_with("eyJ") && text.bytes().filter(|byte| *byte == b'.').count() == 2 {
            return Shape::Jwt;
        }
        let uuid = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        if uuid { Shape::Uuid } else { Shape::Opaque }
    }
}

/// A core: how its three parts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Core {
    Base62,
    Base32,
    KeyId,
    Uuid,
}

impl Core {
    pub(super) const ALL: [Core; 4] = [Core::Base62, Core::Base32, Core::KeyId, Core::Uuid];
    pub(super) const LONGEST: usize = 42;

    /// Alphabet, characters of the nonce, characters of the tag.
    fn layout(self) -> (&'static [u8], usize, usize) {
        match self {
            Core::Base62 => (BASE62, 18, 6),
            Core::Base32 => (LOWER, 28, 8),
            Core::KeyId => (UPPER, 8, 4),
            Core::Uuid => (HEX, 15, 7),
        }
    }

    fn id(self) -> u8 {
        match self {
            Core::Base62 => 1,
            Core::Base32 => 2,
            Core::KeyId => 3,
            Core::Uuid => 4,
        }
    }
}

/// Makes placeholders, and knows those that it made. One for a service; its key decides what is ours.
#[derive(Clone)]
pub struct Mint {
    key: hmac::Key,
    /// In base62 and base32 cores.
    letters: [u8; 6],
    /// In key ids, after `AKIA`.
    upper: [u8; 4],
    /// The first group of a UUID.
    hex: [u8; 8],
    guard: OnceLock<Arc<Guard>>,
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mint")
    }
}

/// A placeholder, and where in it its core is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placeholder {
    pub(super) text: String,
    /// The core, by which it is looked up.
    pub(super) core: String,
}

impl Mint {
    /// With a key of its own, gone with the process.
    pub fn new() -> Result<Mint, BrokerError> {
        let mut key = Zeroizing::new([0_u8; 32]);
        fill(&mut key[..])?;
        Ok(Mint::from_key(&key))
    }

    /// With a key that outlives the process, so that placeholders from before are known as ours and refused.
    pub fn from_key(key: &[u8; 32]) -> Mint {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let marks = hmac::sign(&key, b"marker");
        let marks = marks.as_ref();
        // Starts with a letter that is rare in text, so that the search for it stumbles seldom.
        let mut letters = [0; 6];
        letters[0] = b"jkqvxz"[usize::from(marks[0]) % 6];
        letters[1] = b"234567"[usize::from(marks[1]) % 6];
        for at in 2..6 {
            letters[at] = LOWER[usize::from(marks[at]) % 32];
        }
        let mut upper = [0; 4];
        for (at, byte) in upper.iter_mut().enumerate() {
            *byte = UPPER[usize::from(marks[8 + at]) % 32];
        }
        let mut hex = [0; 8];
        for (at, byte) in hex.iter_mut().enumerate() {
            *byte = HEX[usize::from(marks[16 + at]) % 16];
        }
        let mint = Mint { key, letters, upper, hex, guard: OnceLock::new() };
        // Made now, so that all clones share it.
        mint.guard();
        mint
    }

    /// The search for what this mint makes; one for all sessions.
    pub(super) fn guard(&self) -> Arc<Guard> {
        Arc::clone(self.guard.get_or_init(|| Arc::new(Guard::new(self.clone()))))
    }

    /// What all placeholders with this core have in it. In a key id it begins with the public prefix.
    pub(super) fn marker(&self, core: Core) -> Vec<u8> {
        match core {
            Core::Base62 | Core::Base32 => self.letters.to_vec(),
            Core::KeyId => [b"AKIA".as_slice(), &self.upper].concat(),
            Core::Uuid => [self.hex.as_slice(), b"-"].concat(),
        }
    }

    /// The length of the core at the start of `text`, if it is one that we made. `None` also when `text` ends too early.
    pub(super) fn recognise(&self, text: &[u8]) -> Option<usize> {
        Core::ALL.iter().find_map(|core| self.core_at(*core, text))
    }

    /// The length of the core at the start of `text`.
    pub(super) fn core_at(&self, core: Core, text: &[u8]) -> Option<usize> {
        let (alphabet, nonce, tag) = core.layout();
        let marker = self.marker(core);
        let rest = text.strip_prefix(marker.as_slice())?;
        if core == Core::Uuid {
            let rest = rest.get(..27)?;
            let digits: Vec<u8> = rest.iter().copied().filter(u8::is_ascii_hexdigit).collect();
            if digits.len() != 24 || digits[4] != b'4' {
                return None;
            }
            // The version and variant digits are no part of the nonce.
            let nonce: Vec<u8> = [&digits[..4], &digits[5..8], &digits[9..17]].concat();
            return (self.tag(core, &nonce, tag, alphabet) == digits[17..24]).then_some(36);
        }
        let (given, rest) = rest.split_at_checked(nonce)?;
        let expected = self.tag(core, given, tag, alphabet);
        (rest.get(..tag)? == expected.as_slice()).then_some(marker.len() + nonce + tag)
    }

    fn tag(&self, core: Core, nonce: &[u8], length: usize, alphabet: &[u8]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"tag");
        context.update(&[core.id()]);
        context.update(nonce);
        let bytes = context.sign();
        spell(bytes.as_ref(), length, alphabet)
    }

    fn core(&self, core: Core) -> Result<String, BrokerError> {
        let (alphabet, nonce, tag) = core.layout();
        let given = random(nonce, alphabet)?;
        let tag = self.tag(core, &given, tag, alphabet);
        let mut text = self.marker(core);
        if core == Core::Uuid {
            text.extend_from_slice(&given[..4]);
            text.extend_from_slice(b"-4");
            text.extend_from_slice(&given[4..7]);
            text.push(b'-');
            text.push(random(1, b"89ab")?[0]);
            text.extend_from_slice(&given[7..10]);
            text.push(b'-');
            text.extend_from_slice(&given[10..15]);
        } else {
            text.extend_from_slice(&given);
        }
        text.extend_from_slice(&tag);
        Ok(ascii(text))
    }

    /// A new placeholder of this shape.
    pub(super) fn make(&self, shape: Shape) -> Result<Placeholder, BrokerError> {
        let letters = |count: usize| random(count, BASE62).map(ascii);
        let digits = |count: usize| random(count, b"123456789").map(ascii);
        let core = self.core(match shape {
            Shape::AsValue | Shape::Opaque => Core::Base32,
            Shape::Uuid => Core::Uuid,
            Shape::AwsKeyId => Core::KeyId,
            _ => Core::Base62,
        })?;
        let text = match shape {
            Shape::AsValue | Shape::Opaque => format!("palisade_{core}"),
            Shape::GitHub(prefix) => format!("{prefix}{core}{}", checksum(&core)),
            Shape::Npm => format!("npm_{core}{}", checksum(&core)),
            Shape::GitHubFineGrained => format!("github_pat_{}_{core}{}", letters(22)?, letters(29)?),
            Shape::Anthropic(prefix) => format!("{prefix}{core}{}AA", letters(63)?),
            Shape::OpenAi(prefix) => format!("{prefix}{core}{}", letters(18)?),
            Shape::Slack(prefix) => format!("{prefix}{}-{}-{core}", digits(12)?, digits(12)?),
            Shape::GitLab => format!("glpat-{core}"),
            Shape::PyPi => format!("pypi-AgEIcHlwaS5vcmc{core}{}", letters(90)?),
            Shape::Jwt => {
                use base64::Engine as _;
                use base64::engine::general_purpose::URL_SAFE_NO_PAD;
                let head = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
                let claims = URL_SAFE_NO_PAD.encode(format!(
                    r#"{{"iss":"palisade","sub":"placeholder","jti":"{}","exp":4102444800}}"#,
                    letters(12)?
                ));
                // 43 characters are 32 bytes; the last carries four bits only.
                format!("{head}.{claims}.{core}{}A", letters(12)?)
            }
            Shape::AwsSecretKey => format!("{core}{}", letters(10)?),
            Shape::Uuid | Shape::AwsKeyId => core.clone(),
        };
        Ok(Placeholder { text, core })
    }
}

/// GitHub's and npm's: CRC-32 of what comes before, six characters in base62.
fn checksum(text: &str) -> String {
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    let mut rest = crc.sum() as usize;
    let mut out = [b'0'; 6];
    for byte in out.iter_mut().rev() {
        *byte = BASE62[rest % 62];
        rest /= 62;
    }
    ascii(out.to_vec())
}

/// `length` characters of `alphabet`, from pseudorandom bytes: taken as one large number, so that no bits are lost.
fn spell(bytes: &[u8], length: usize, alphabet: &[u8]) -> Vec<u8> {
    let mut number = bytes.first_chunk::<16>().map_or(0, |bytes| u128::from_le_bytes(*bytes));
    let base = alphabet.len() as u128;
    (0..length)
        .map(|_| {
            let digit = usize::try_from(number % base).unwrap_or_default();
            number /= base;
            alphabet[digit]
        })
        .collect()
}

/// Characters of `alphabet`, each as likely as the others.
fn random(count: usize, alphabet: &[u8]) -> Result<Vec<u8>, BrokerError> {
    let mut out = Vec::with_capacity(count);
    let fair = 256 - 256 % alphabet.len();
    let mut bytes = [0_u8; 64];
    while out.len() < count {
        fill(&mut bytes)?;
        let wanted = count - out.len();
        out.extend(
            bytes
                .iter()
                .map(|byte| usize::from(*byte))
                .filter(|byte| *byte < fair)
                .map(|byte| alphabet[byte % alphabet.len()])
                .take(wanted),
        );
    }
    Ok(out)
}

fn fill(bytes: &mut [u8]) -> Result<(), BrokerError> {
    getrandom::fill(bytes).map_err(|error| BrokerError::Random(error.to_string()))
}

fn ascii(bytes: Vec<u8>) -> String {
    bytes.into_iter().map(char::from).collect()
}
