//! Hosts that have shown who they are, for as long as the connection to them is open.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Bind, Shown};
use crate::Authority;
use crate::policy::RuleName;

/// One connection on which a host has shown who it is.
#[derive(Debug)]
pub(crate) struct Proof {
    /// Whom the connection was opened to, by the policy.
    pub(crate) to: Authority,
    /// The rule that allowed it.
    pub(crate) rule: RuleName,
    pub(crate) shown: Shown,
}

/// The proofs of a session. Whoever carries a connection holds its proof.
#[derive(Debug, Default)]
pub(crate) struct Live(Mutex<Vec<Weak<Proof>>>);

impl Live {
    pub(crate) fn add(&self, proof: &Arc<Proof>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|proof| proof.strong_count() > 0);
        all.push(Arc::downgrade(proof));
    }

    /// The open connection that a client speaks of.
    pub(crate) fn find(&self, bind: &Bind<'_>) -> Option<Arc<Proof>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open = all.iter().filter_map(Weak::upgrade);
        open.find(|proof| proof.shown.key == bind.host_key && proof.shown.signature == bind.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_while_its_connection_is_open() {
        let live = Live::default();
        let proof = |key: &[u8], signature: &[u8]| {
            let shown = Shown { key: key.to_vec(), signature: signature.to_vec() };
            let to = Authority { host: "code.test".parse().unwrap(), port: 22 };
            let proof = Arc::new(Proof { to, rule: RuleName::new("code"), shown });
            live.add(&proof);
            proof
        };
        let bind = |host_key, signature| Bind { host_key, signature, session: b"", forwarding: false };
        let (first, second) = (proof(b"key", b"first"), proof(b"key", b"second"));
        assert!(live.find(&bind(b"key", b"first")).is_some() && live.find(&bind(b"key", b"second")).is_some());
        assert!(live.find(&bind(b"key", b"third")).is_none() && live.find(&bind(b"other", b"first")).is_none());
        drop(first);
        assert!(live.find(&bind(b"key", b"first")).is_none() && live.find(&bind(b"key", b"second")).is_some());
        drop(second);
        assert!(live.find(&bind(b"key", b"second")).is_none());
    }
}
