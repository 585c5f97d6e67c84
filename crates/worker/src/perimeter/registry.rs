//! The sessions that this worker serves, by id.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::hands::Hands;

/// A session that is served.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) hands: Arc<Hands>,
    pub(crate) since: Instant,
}

/// All of them.
#[derive(Clone, Default)]
pub(crate) struct Registry(Arc<Mutex<BTreeMap<Arc<str>, Served>>>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Served>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session, for as long as what is returned lives.
    pub(crate) fn enter(&self, session: Arc<str>, hands: Arc<Hands>) -> Entered {
        let served = Served { hands: hands.clone(), since: Instant::now() };
        self.lock().insert(session.clone(), served);
        Entered { registry: self.clone(), session, hands }
    }

    pub(crate) fn find(&self, session: &str) -> Option<Served> {
        self.lock().get(session).cloned()
    }

    pub(crate) fn all(&self) -> Vec<(Arc<str>, Served)> {
        self.lock().iter().map(|(session, served)| (session.clone(), served.clone())).collect()
    }
}

/// A session's entry.
pub(crate) struct Entered {
    registry: Registry,
    session: Arc<str>,
    hands: Arc<Hands>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut all = self.registry.lock();
        // A later item of the same session may have entered it anew.
        if all.get(&self.session).is_some_and(|served| Arc::ptr_eq(&served.hands, &self.hands)) {
            all.remove(&self.session);
        }
    }
}
