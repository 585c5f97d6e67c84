//! Sandboxes that wait for sessions, and whoever makes them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use super::launch::{self, Live, Waiting};
use super::{Base, Options, root};
use crate::pool::Pool;
use crate::{Error, Spec};

/// Without anybody asking, the stock is looked over this often.
const ROUND: Duration = Duration::from_secs(5);

/// Whoever has just been given a sandbox has the machine for a moment before the next one is made.
const BREATH: Duration = Duration::from_millis(10);

/// What one driver has in stock, and how many it starts at a time.
#[derive(Debug)]
pub(super) struct Stock {
    pool: Mutex<Pool<Base, Waiting>>,
    /// Cold starts under way: more of them at a time only make each other wait.
    starts: Arc<Semaphore>,
    asked: Arc<Notify>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    pooling: bool,
}

/// A sandbox that is up, and whether it had waited.
pub(super) struct Taken {
    pub(super) live: Live,
    pub(super) pooled: bool,
}

impl Stock {
    pub(super) fn new(options: &Options) -> Stock {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let starts = if options.starts == 0 { 3 * cores } else { options.starts };
        Stock {
            pool: Mutex::new(Pool::new(options.pool.clone())),
            starts: Arc::new(Semaphore::new(starts)),
            asked: Arc::default(),
            keeper: Mutex::new(None),
            pooling: options.pool.most > 0,
        }
    }

    fn pool(&self) -> MutexGuard<'_, Pool<Base, Waiting>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox for this session: one that waits when there is one, else a new one in its turn.
    pub(super) async fn get(self: &Arc<Stock>, spec: Arc<Spec>) -> Result<Taken, Error> {
        let base = Base::of(&spec);
        if root::is_quick(&spec) {
            root::prepare(&spec)?;
        } else {
            let spec = spec.clone();
            tokio::task::spawn_blocking(move || root::prepare(&spec)).await.map_err(|_| Error::Ended)??;
        }
        if self.pooling {
            self.keep();
            let first = self.pool().take(&base, Instant::now());
            self.asked.notify_one();
            if let Some(first) = first
                && let Some(live) = self.claim(first, &base, &spec).await?
            {
                return Ok(Taken { live, pooled: true });
            }
        }
        let permit = self.starts.clone().acquire_owned().await.map_err(|_| Error::Ended)?;
        // The start has the permit, as it goes on when nobody waits for it any more.
        let made = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            launch::make_for(&base, &spec)
        });
        let live = made.await.map_err(|_| Error::Ended)??;
        Ok(Taken { live, pooled: false })
    }

    /// Tries those that wait, one after another, until one comes up.
    async fn claim(&self, first: Waiting, base: &Base, spec: &Spec) -> Result<Option<Live>, Error> {
        let mut next = Some(first);
        while let Some(waiting) = next {
            if waiting.is_good(base) {
                match waiting.claim(spec).await {
                    // It died while it waited, or just now; what is wrong with the session is wrong with any sandbox.
                    Err(Error::Ended | Error::Socket(_) | Error::Protocol(_)) => {}
                    claimed => return claimed.map(Some),
                }
            } else {
                drop(tokio::task::spawn_blocking(move || drop(waiting)));
            }
            next = self.pool().another(base);
        }
        Ok(None)
    }

    /// Sees to it that somebody makes what is wanted.
    fn keep(self: &Arc<Stock>) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        // A runtime that has ended took its tasks with it.
        if keeper.as_ref().is_none_or(JoinHandle::is_finished) {
            *keeper = Some(tokio::spawn(keeper_of(Arc::downgrade(self))));
        }
    }

    /// Takes out those that are of no use any more, and those that are too many.
    fn look_over(&self) -> Vec<Waiting> {
        let mut pool = self.pool();
        let mut out = pool.reject(|base, waiting| waiting.is_good(base));
        out.append(&mut pool.surplus(Instant::now()));
        out
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.pool().waiting()
    }

    /// Ends all that wait; from now on there are only cold starts.
    pub(super) async fn close(&self) {
        let waiting = self.pool().close();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            self.asked.notify_one();
            // One that is under way is handed back and ends.
            let _ = keeper.await;
        }
        let _ = tokio::task::spawn_blocking(move || drop(waiting)).await;
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.abort();
        }
    }
}

/// Makes what is wanted, one at a time, and takes out what is not, for as long as the stock lives.
async fn keeper_of(stock: Weak<Stock>) {
    loop {
        let Some(owned) = stock.upgrade() else { return };
        if owned.pool().is_closed() {
            return;
        }
        let wanted = owned.pool().wanted(Instant::now());
        match wanted {
            Some(base) => {
                // In its turn, behind sessions that wait for a cold start.
                let Ok(permit) = owned.starts.clone().acquire_owned().await else { return };
                let key = base.clone();
                let made = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    launch::make(&base)
                });
                let made = made.await;
                let surplus = match made.unwrap_or_else(|why| Err(Error::Protocol(io::Error::other(why)))) {
                    Ok(made) => owned.pool().made(&key, made, Instant::now()),
                    Err(_) => {
                        // The next session that needs a cold start is told why.
                        owned.pool().failed(&key, Instant::now());
                        None
                    }
                };
                if let Some(surplus) = surplus {
                    let _ = tokio::task::spawn_blocking(move || drop(surplus)).await;
                }
            }
            None => {
                // The stock is not held meanwhile: it ends with its driver.
                let asked = owned.asked.clone();
                drop(owned);
                if tokio::time::timeout(ROUND, asked.notified()).await.is_ok() {
                    tokio::time::sleep(BREATH).await;
                } else if let Some(stock) = stock.upgrade() {
                    let _ = tokio::task::spawn_blocking(move || drop(stock.look_over())).await;
                }
            }
        }
    }
}
