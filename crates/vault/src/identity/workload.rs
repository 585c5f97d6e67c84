//! Who a workload is, and its SPIFFE ID.

use crate::identity::IdentityError;

/// The longest part of a name.
const MAX_SEGMENT: usize = 128;

/// The session that a token is for, and what it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The workspace.
    pub workspace: String,
    /// The environment's id.
    pub environment: String,
    /// The agent's id.
    pub agent: String,
    /// The agent's version.
    pub version: String,
    /// The session's id.
    pub session: String,
}

impl Workload {
    /// `spiffe://TRUST_DOMAIN/workspace/W/environment/E/agent/A/version/V/session/S`.
    ///
    /// SPIFFE IDs know no escapes, and what looks like one is refused: every part stands as it is, so that no two workloads have
    /// one name and no part can pass for two.
    pub(super) fn spiffe_id(&self, trust_domain: &str) -> Result<String, IdentityError> {
        let mut id = format!("spiffe://{trust_domain}");
        for (part, value) in [
            ("workspace", &self.workspace),
            ("environment", &self.environment),
            ("agent", &self.agent),
            ("version", &self.version),
            ("session", &self.session),
        ] {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            let sound = (1..=MAX_SEGMENT).contains(&value.len())
                && value.bytes().all(plain)
                && !matches!(value.as_str(), "." | "..");
            if !sound {
                return Err(IdentityError::Segment { part, value: value.chars().take(MAX_SEGMENT).collect() });
            }
            id.push('/');
            id.push_str(part);
            id.push('/');
            id.push_str(value);
        }
        Ok(id)
    }
}

/// Refuses what is no trust domain of SPIFFE.
pub(super) fn check_trust_domain(name: &str) -> Result<(), IdentityError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    if (1..=255).contains(&name.len()) && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(IdentityError::TrustDomain(name.chars().take(255).collect()))
    }
}
