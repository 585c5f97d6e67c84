//! Requests that the broker itself makes: a GitHub App's, for tokens of its installations.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::{Request, Response};
use bytes::{Bytes, BytesMut};
use palisade_egress::broker::{Fetch, FetchError};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a request may take.
const CALL: Duration = Duration::from_secs(10);
/// More than any answer with a token has.
const LONGEST: usize = 256 * 1024;

/// The worker's own way out: it goes where the operator's file of credentials says, and nowhere else.
#[derive(Debug)]
pub(super) struct Direct(reqwest::Client);

impl Direct {
    /// `authorities` are certificates (PEM) that are trusted besides the machine's own.
    pub(super) fn new(authorities: Option<&Path>) -> Result<Direct, String> {
        // Another part of the process may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(CALL)
            // A proxy of the environment or a redirect would be handed what the app signs.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = authorities {
            let pem = std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))?;
            let bundle = reqwest::Certificate::from_pem_bundle(&pem).map_err(|why| why.to_string())?;
            client = client.tls_certs_merge(bundle);
        }
        client.build().map(Direct).map_err(|why| failed(why).0)
    }
}

#[async_trait]
impl Fetch for Direct {
    async fn fetch(&self, request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        let request = reqwest::Request::try_from(request).map_err(failed)?;
        let mut answer = self.0.execute(request).await.map_err(failed)?;
        let status = answer.status();
        let mut body = BytesMut::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            if body.len() + piece.len() > LONGEST {
                return Err(FetchError(format!("it answered more than {} KiB", LONGEST >> 10)));
            }
            body.extend_from_slice(&piece);
        }
        let mut response = Response::new(body.freeze());
        *response.status_mut() = status;
        Ok(response)
    }
}

/// What kept it from being answered: the innermost cause says it best. Holds nothing of what was sent.
fn failed(error: reqwest::Error) -> FetchError {
    if error.is_timeout() {
        return FetchError(format!("no answer within {} s", CALL.as_secs()));
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    FetchError(text)
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};

    use super::*;

    #[tokio::test]
    async fn an_answer_comes_whole_and_nothing_is_followed() {
        let router = axum::Router::new()
            .route("/token", post(async |body: String| (axum::http::StatusCode::CREATED, body + "!")))
            .route("/large", get(async || "x".repeat(LONGEST + 1)))
            .route("/away", get(async || axum::response::Redirect::temporary("/large")));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let direct = Direct::new(None).unwrap();
        let get = |path: &str| Request::get(format!("{url}{path}")).body(Bytes::new()).unwrap();
        let asked = Request::post(format!("{url}/token")).body(Bytes::from_static(b"yes")).unwrap();
        let answer = direct.fetch(asked).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (201, &b"yes!"[..]));
        assert!(direct.fetch(get("/large")).await.unwrap_err().to_string().contains("256 KiB"));
        assert_eq!(direct.fetch(get("/away")).await.unwrap().status(), 307);
        serving.abort();
        let _ = serving.await;
        let gone = direct.fetch(get("/token")).await.unwrap_err().to_string();
        assert!(!gone.contains("127.0.0.1") && !gone.is_empty(), "{gone}");
    }
}
