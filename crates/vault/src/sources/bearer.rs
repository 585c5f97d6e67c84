//! What a cloud grants for a while, a token or keys, kept until shortly before its end.

use std::sync::Arc;
use std::time::Duration;

use palisade_api::Secret;
use reqwest::header::AUTHORIZATION;
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::error::FetchError;
use crate::http::{Answer, Call, Client, secret_header};

/// What is this near its end is not used any more.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a refused login is not tried again.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Granted<T = Secret> {
    pub(super) token: T,
    /// On the clock that never goes back.
    pub(super) ends: Duration,
}

#[derive(Debug)]
pub(super) struct Bearer<T = Secret> {
    kept: Mutex<Kept<T>>,
}

impl<T> Default for Bearer<T> {
    fn default() -> Self {
        Self { kept: Mutex::new(Kept { granted: None, number: 0, refused: None }) }
    }
}

struct Kept<T> {
    granted: Option<(u64, Arc<Granted<T>>)>,
    number: u64,
    refused: Option<(Duration, FetchError)>,
}

impl<T> std::fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({})", if self.granted.is_some() { "a token" } else { "none" })
    }
}

impl Bearer<Secret> {
    /// Asks for `url` with the token, as OAuth has it (RFC 6750).
    pub(super) async fn get<F: Future<Output = Result<Granted, FetchError>>>(
        &self,
        client: &Client,
        clock: &dyn Clock,
        log_in: impl Fn() -> F,
        url: &str,
    ) -> Result<Answer, FetchError> {
        let call = |token: &Secret| {
            let header = secret_header("Bearer ", token)
                .ok_or_else(|| FetchError::malformed(client.place(), "its token holds what no header may"))?;
            let mut call = Call::get(url.to_owned());
            call.headers.insert(AUTHORIZATION, header);
            Ok(call)
        };
        self.call(client, clock, log_in, call, |answer| answer.status == 401).await
    }
}

impl<T> Bearer<T> {
    /// Makes a call with what is granted; if it is not taken any more (`spent`), once more with what is granted then.
    pub(super) async fn call<F: Future<Output = Result<Granted<T>, FetchError>>>(
        &self,
        client: &Client,
        clock: &dyn Clock,
        log_in: impl Fn() -> F,
        call: impl Fn(&T) -> Result<Call, FetchError>,
        spent: impl Fn(&Answer) -> bool,
    ) -> Result<Answer, FetchError> {
        let mut refused = None;
        loop {
            let (number, granted) = self.token(clock, &log_in, refused).await?;
            let answer = client.call(call(&granted.token)?).await?;
            if !spent(&answer) || refused.is_some() {
                return Ok(answer);
            }
            refused = Some(number);
        }
    }

    async fn token<F: Future<Output = Result<Granted<T>, FetchError>>>(
        &self,
        clock: &dyn Clock,
        log_in: impl Fn() -> F,
        not: Option<u64>,
    ) -> Result<(u64, Arc<Granted<T>>), FetchError> {
        let mut kept = self.kept.lock().await;
        let now = clock.elapsed();
        if let Some((number, granted)) = &kept.granted
            && Some(*number) != not
            && now + MARGIN < granted.ends
        {
            return Ok((*number, granted.clone()));
        }
        if let Some((until, error)) = &kept.refused
            && now < *until
        {
            return Err(error.clone());
        }
        kept.granted = None;
        kept.number += 1;
        match log_in().await {
            Ok(granted) => {
                let granted = Arc::new(granted);
                kept.refused = None;
                // What would not be used again does not stay in memory.
                if clock.elapsed() + MARGIN < granted.ends {
                    kept.granted = Some((kept.number, granted.clone()));
                }
                Ok((kept.number, granted))
            }
            Err(error) => {
                // What is wrong on this machine is looked at anew each time. The pause begins when the refusal is known, which
                // may have taken long.
                if !matches!(error, FetchError::Local { .. }) {
                    kept.refused = Some((clock.elapsed() + PAUSE, error.clone()));
                }
                Err(error)
            }
        }
    }
}
