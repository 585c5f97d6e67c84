//! A token that a cloud grants for a while, kept until shortly before its end.

use std::time::Duration;

use palisade_api::Secret;
use reqwest::header::AUTHORIZATION;
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::error::FetchError;
use crate::http::{Answer, Call, Client, secret_header};

/// A token this near its end is not used any more.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a refused login is not tried again.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Granted {
    pub(super) token: Secret,
    /// On the clock that never goes back.
    pub(super) ends: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Bearer {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    granted: Option<(u64, std::sync::Arc<Granted>)>,
    number: u64,
    refused: Option<(Duration, FetchError)>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({})", if self.granted.is_some() { "a token" } else { "none" })
    }
}

impl Bearer {
    /// Asks for `url` with the token, as OAuth has it (RFC 6750).
    pub(super) async fn get<F: Future<Output = Result<Granted, FetchError>>>(
        &self,
        client: &Client,
        clock: &dyn Clock,
        log_in: impl Fn() -> F,
        url: &str,
    ) -> Result<Answer, FetchError> {
        let call = |token: &Secret| {
            let mut call = Call::get(url.to_owned());
            call.headers.insert(AUTHORIZATION, secret_header("Bearer ", token)?);
            Some(call)
        };
        self.call(client, clock, log_in, call).await
    }

    /// Makes a call with the token; if the token is refused, once more with a new one.
    pub(super) async fn call<F: Future<Output = Result<Granted, FetchError>>>(
        &self,
        client: &Client,
        clock: &dyn Clock,
        log_in: impl Fn() -> F,
        call: impl Fn(&Secret) -> Option<Call>,
    ) -> Result<Answer, FetchError> {
        let mut refused = None;
        loop {
            let (number, granted) = self.token(clock, &log_in, refused).await?;
            let call = call(&granted.token)
                .ok_or_else(|| FetchError::malformed(client.place(), "its token holds what no header may"))?;
            let answer = client.call(call).await?;
            if answer.status != 401 || refused.is_some() {
                return Ok(answer);
            }
            refused = Some(number);
        }
    }

    async fn token<F: Future<Output = Result<Granted, FetchError>>>(
        &self,
        clock: &dyn Clock,
        log_in: impl Fn() -> F,
        not: Option<u64>,
    ) -> Result<(u64, std::sync::Arc<Granted>), FetchError> {
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
                let granted = std::sync::Arc::new(granted);
                kept.refused = None;
                kept.granted = Some((kept.number, granted.clone()));
                Ok((kept.number, granted))
            }
            Err(error) => {
                kept.refused = Some((now + PAUSE, error.clone()));
                Err(error)
            }
        }
    }
}
