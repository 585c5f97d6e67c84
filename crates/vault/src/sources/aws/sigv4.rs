//! AWS Signature Version 4, with the whole body in hand.

use std::fmt::Write as _;
use std::time::SystemTime;

use palisade_api::Secret;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HOST, HeaderValue};
use ring::{digest, hmac};
use zeroize::Zeroizing;

use crate::http::Call;

pub(super) struct Signer<'a> {
    pub(super) id: &'a str,
    pub(super) secret: &'a Secret,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn sign(key: &[u8], text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec())
}

impl Signer<'_> {
    /// Adds `host`, `x-amz-date` and `authorization`; every header of the call is signed. The path must be in the form that is
    /// sent. `None` if a part cannot be in a header.
    pub(super) fn sign(&self, call: &mut Call, content: &[u8], now: SystemTime) -> Option<()> {
        let url = Url::parse(&call.url).ok()?;
        let host = match url.port() {
            Some(port) => format!("{}:{port}", url.host_str()?),
            None => url.host_str()?.to_owned(),
        };
        let time = jiff::Timestamp::try_from(now).ok()?.strftime("%Y%m%dT%H%M%SZ").to_string();
        let date = &time[..8];
        call.headers.insert(HOST, HeaderValue::from_str(&host).ok()?);
        call.headers.insert("x-amz-date", HeaderValue::from_str(&time).ok()?);

        let mut headers: Vec<(&str, &str)> = Vec::new();
        for (name, value) in &call.headers {
            headers.push((name.as_str(), value.to_str().ok()?.trim()));
        }
        headers.sort_unstable();
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let mut query: Vec<&str> = url.query().unwrap_or_default().split('&').filter(|part| !part.is_empty()).collect();
        query.sort_unstable();

        let mut canonical = Zeroizing::new(format!("{}\n{}\n{}\n", call.method, url.path(), query.join("&")));
        for (name, value) in headers {
            let _ = writeln!(canonical, "{name}:{value}");
        }
        let _ = write!(canonical, "\n{names}\n{}", sha256(content));
        let scope = format!("{date}/{}/{}/aws4_request", self.region, self.service);
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));

        let key = Zeroizing::new(format!("AWS4{}", self.secret.expose()));
        let key = sign(key.as_bytes(), date);
        let key = sign(&key, self.region);
        let key = sign(&key, self.service);
        let key = sign(&key, "aws4_request");
        let signature = hex(&sign(&key, &to_sign));
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", self.id);
        let mut header = HeaderValue::from_str(&authorization).ok()?;
        header.set_sensitive(true);
        call.headers.insert(AUTHORIZATION, header);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reqwest::header::CONTENT_TYPE;

    use super::*;

    /// The worked example of AWS's own documentation of Signature Version 4.
    #[test]
    fn it_signs_as_the_documented_example() {
        let signer = Signer {
            id: "AKIDEXAMPLE",
            secret: &Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            region: "us-east-1",
            service: "iam",
        };
        let mut call = Call::get("https://iam.amazonaws.com/?Version=2010-05-08&Action=ListUsers".to_owned());
        let form = HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
        call.headers.insert(CONTENT_TYPE, form);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        signer.sign(&mut call, b"", now).unwrap();
        assert_eq!(call.headers["x-amz-date"], "20150830T123600Z");
        assert_eq!(
            call.headers[AUTHORIZATION],
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }
}
