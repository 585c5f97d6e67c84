//! Waiting that takes no time while what is waited for stands still.

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Waits for `work` no longer than the limit. The time does not count in which `stands` says of what is watched that it stands
/// still. None when the time is over.
pub async fn within<T, S>(
    limit: Duration,
    mut watched: watch::Receiver<S>,
    stands: impl Fn(&S) -> bool,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    let (mut left, mut watching) = (limit, true);
    loop {
        let began = Instant::now();
        let still = stands(&watched.borrow_and_update());
        tokio::select! {
            done = &mut work => return Some(done),
            () = tokio::time::sleep(left), if !still => return None,
            // What is gone changes no more.
            changed = watched.changed(), if watching => watching = changed.is_ok(),
        }
        if !still {
            left = left.saturating_sub(began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_that_something_stands_still_does_not_count() {
        let ms = Duration::from_millis;
        let (sender, watched) = watch::channel(true);
        let work = || tokio::time::sleep(ms(50));
        assert_eq!(within(ms(1), watched.clone(), |still| *still, work()).await, Some(()));
        // It does again once that is over, and when nobody can say any more.
        let goes_on = async {
            tokio::time::sleep(ms(20)).await;
            sender.send_replace(false);
        };
        let never = within(ms(1), watched.clone(), |still| *still, std::future::pending::<()>());
        assert_eq!(tokio::join!(never, goes_on).0, None);
        drop(sender);
        assert_eq!(within(ms(1), watched, |still| *still, std::future::pending::<()>()).await, None);
    }
}
