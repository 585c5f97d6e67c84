//! Credentials that are keys rather than tokens: AWS signatures, client certificates, GitHub Apps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::request::Parts;
use palisade_egress::broker::{BodyPlan, Broker, Credential, Fetch, FetchError, GitHubApp, Hosts, Kind, Misuse, Wire};
use palisade_egress::{Supply, SupplyError};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::PrivatePkcs1KeyDer;
use rustls_pki_types::pem::PemObject as _;

use super::broker::{Source, authority, credential, mint, placeholder, request};

/// The keys of AWS's own examples.
pub(crate) const KEYS: &str =
    r#"{"access_key_id":"AKIAIOSFODNN7EXAMPLE","secret_access_key":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}"#;
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn aws(value: &str) -> (Broker, String) {
    let mut keys = credential("", &["*.amazonaws.com"], Source::new(value));
    keys.reference = "test/aws".into();
    keys.kind = Kind::AwsKeys;
    let broker = Broker::new(&mint(), "s", vec![keys]).unwrap();
    let id = placeholder(&broker, "AWS_ACCESS_KEY_ID");
    (broker, id)
}

async fn inject(broker: &Broker, to: &str, parts: &mut Parts) -> Result<BodyPlan, Misuse> {
    broker.inject(parts, Wire::Https, &authority(to)).await.map(|injection| injection.body)
}

pub(crate) fn signed(id: &str, service: &str, names: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={id}/20130524/us-east-1/{service}/aws4_request, SignedHeaders={names}, Signature=00"
    )
}

fn signature(parts: &Parts) -> String {
    let header = parts.headers["authorization"].to_str().unwrap();
    assert!(header.contains("Credential=AKIAIOSFODNN7EXAMPLE/"), "{header}");
    header.rsplit_once("Signature=").unwrap().1.to_owned()
}

/// The examples and their signatures are those of "Signature Calculations for the Authorization Header" and "Authenticating
/// Requests: Using Query Parameters" in the documentation of S3.
#[tokio::test]
async fn requests_to_aws_are_signed_again_with_the_real_keys() {
    let (broker, id) = aws(KEYS);
    assert!(id.len() == 20 && id.starts_with("AKIA"));
    assert_eq!(placeholder(&broker, "AWS_SECRET_ACCESS_KEY").len(), 40);
    let host = "examplebucket.s3.amazonaws.com";
    let get = |uri: &str, more: &[(&str, String)], names: &str| {
        let mut headers = vec![
            ("host", host.to_owned()),
            ("authorization", signed(&id, "s3", names)),
            ("x-amz-content-sha256", EMPTY.to_owned()),
            ("x-amz-date", "20130524T000000Z".to_owned()),
        ];
        headers.extend_from_slice(more);
        request("GET", uri, &headers)
    };
    let names = "host;x-amz-content-sha256;x-amz-date";
    for (uri, more, names, expected) in [
        (
            "/test.txt",
            vec![("range", "bytes=0-9".to_owned())],
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        ("/?lifecycle", vec![], names, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/?max-keys=2&prefix=J", vec![], names, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ] {
        let mut parts = get(uri, &more, names);
        inject(&broker, host, &mut parts).await.unwrap();
        assert_eq!(signature(&parts), expected, "{uri}");
    }
    let mut put = request(
        "PUT",
        "/test%24file.text",
        &[
            ("host", host.to_owned()),
            ("authorization", signed(&id, "s3", "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class")),
            ("date", "Fri, 24 May 2013 00:00:00 GMT".to_owned()),
            ("x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072".to_owned()),
            ("x-amz-date", "20130524T000000Z".to_owned()),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY".to_owned()),
        ],
    );
    inject(&broker, host, &mut put).await.unwrap();
    assert_eq!(signature(&put), "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");

    let presigned = format!(
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={id}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
         &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=00"
    );
    let mut parts = request("GET", &presigned, &[("host", host.into())]);
    inject(&broker, host, &mut parts).await.unwrap();
    let query = parts.uri.query().unwrap();
    assert!(
        query.ends_with("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"),
        "{query}"
    );
    assert!(query.contains("X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F2013") && !query.contains(&id));

    // The secret key is never sent, but it may not come back either.
    let mut redactor = broker.redactor();
    let echo = [redactor.push("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()), redactor.finish()].concat();
    assert_eq!(String::from_utf8(echo).unwrap(), placeholder(&broker, "AWS_SECRET_ACCESS_KEY"));
}

/// From the signature test suite of AWS (`post-vanilla` with a body, as botocore signs it), computed with its algorithm's words.
#[tokio::test]
async fn a_signature_that_covers_the_body_waits_for_it_and_a_session_token_goes_along() {
    let (broker, id) = aws(
        r#"{"AccessKeyId":"AKIAIOSFODNN7EXAMPLE","SecretAccessKey":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY","SessionToken":"real-session-token"}"#,
    );
    let host = "sts.amazonaws.com";
    let headers = [
        ("authorization", signed(&id, "sts", "content-type;host;x-amz-date")),
        ("content-type", "application/x-www-form-urlencoded".to_owned()),
        ("content-length", "43".to_owned()),
        ("x-amz-date", "20130524T000000Z".to_owned()),
    ];
    let mut parts = request("POST", "/a b/../".replace(' ', "%20").as_str(), &headers);
    let BodyPlan::Whole(whole) = inject(&broker, host, &mut parts).await.unwrap() else {
        panic!("it was not asked for")
    };
    let body = "Action=GetCallerIdentity&Version=2011-06-15";
    assert_eq!(whole.finish(&mut parts, body.into()).await.unwrap().0, body);
    assert_eq!(parts.headers["x-amz-security-token"], "real-session-token");
    // Again, step by step.
    let digest = |text: &[u8]| {
        ring::digest::digest(&ring::digest::SHA256, text)
            .as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    };
    let canonical = format!(
        "POST\n/\n\ncontent-type:application/x-www-form-urlencoded\nhost:sts.amazonaws.com\nx-amz-date:20130524T000000Z\n\
         x-amz-security-token:real-session-token\n\ncontent-type;host;x-amz-date;x-amz-security-token\n{}",
        digest(body.as_bytes())
    );
    let text = format!(
        "AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/sts/aws4_request\n{}",
        digest(canonical.as_bytes())
    );
    let mut key = b"AWS4wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_vec();
    for part in ["20130524", "us-east-1", "sts", "aws4_request", &text] {
        key = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    assert_eq!(signature(&parts), key.iter().map(|byte| format!("{byte:02x}")).collect::<String>());

    // A placeholder of the secret in the body, or anything else in the place of the key.
    let secret = placeholder(&broker, "AWS_SECRET_ACCESS_KEY");
    let mut parts = request("POST", "/", &headers);
    let BodyPlan::Whole(whole) = inject(&broker, host, &mut parts).await.unwrap() else { panic!() };
    assert!(whole.finish(&mut parts, format!("a={secret}").into()).await.unwrap_err().alert());
}

/// A body in pieces as a client signs it, with signatures that are none.
pub(crate) fn in_pieces(pieces: &[&[u8]], trailer: Option<&str>) -> Vec<u8> {
    let none = "0".repeat(64);
    let mut body = Vec::new();
    for piece in pieces {
        body.extend(format!("{:x};chunk-signature={none}\r\n", piece.len()).into_bytes());
        body.extend_from_slice(piece);
        if trailer.is_none() || !piece.is_empty() {
            body.extend_from_slice(b"\r\n");
        }
    }
    if let Some(trailer) = trailer {
        body.extend(format!("{trailer}\r\nx-amz-trailer-signature:{none}\r\n\r\n").into_bytes());
    }
    body
}

/// Gives a body to its plan, so much at a time.
fn carried(plan: BodyPlan, body: &[u8], at_a_time: usize) -> Result<Vec<u8>, Misuse> {
    let BodyPlan::Replace(mut replacer) = plan else { panic!("it is read as a whole") };
    assert!(!replacer.changes_length());
    let mut out = Vec::new();
    for bytes in body.chunks(at_a_time) {
        out.extend(replacer.push(Bytes::copy_from_slice(bytes))?);
    }
    out.extend(replacer.finish()?);
    Ok(out)
}

/// The examples and their signatures are those of "Transferring Payload in Multiple Chunks" and of "Including trailing headers"
/// in the documentation of S3.
#[tokio::test]
async fn bodies_that_are_signed_in_pieces_are_signed_again_piece_by_piece() {
    let (broker, id) = aws(KEYS);
    let host = "s3.amazonaws.com";
    let put = |names: &str, hash: &str, more: &[(&str, &str)]| {
        let mut headers = vec![
            ("host", host.to_owned()),
            ("authorization", signed(&id, "s3", names)),
            ("content-encoding", "aws-chunked".to_owned()),
            ("x-amz-content-sha256", hash.to_owned()),
            ("x-amz-date", "20130524T000000Z".to_owned()),
            ("x-amz-decoded-content-length", "66560".to_owned()),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY".to_owned()),
        ];
        headers.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        request("PUT", "/examplebucket/chunkObject.txt", &headers)
    };
    let plain = || {
        let names = "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class";
        put(names, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", &[("content-length", "66824")])
    };
    let trailing = || {
        let names = "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer";
        put(names, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", &[("x-amz-trailer", "x-amz-checksum-crc32c")])
    };
    let (large, small) = ([b'a'; 65536], [b'a'; 1024]);
    let pieces: [&[u8]; 3] = [&large, &small, b""];
    let signatures = |body: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(body).into_owned();
        let each = text.split("-signature").skip(1).map(|rest| rest[1..65].to_owned());
        each.collect()
    };
    let body = in_pieces(&pieces, None);
    assert_eq!(body.len(), 66824);
    for at_a_time in [1, 7, 1000, 65536, usize::MAX] {
        let mut parts = plain();
        let plan = inject(&broker, host, &mut parts).await.unwrap();
        assert_eq!(signature(&parts), "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9");
        assert_eq!(parts.headers["content-length"], "66824");
        let out = carried(plan, &body, at_a_time).unwrap();
        assert_eq!(
            signatures(&out),
            [
                "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
                "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
                "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"
            ]
        );
        assert_eq!(out.len(), body.len());
        assert_eq!(memchr::memmem::find(&out, &large), memchr::memmem::find(&body, &large));
    }
    let body = in_pieces(&pieces, Some("x-amz-checksum-crc32c:sOO8/Q=="));
    for at_a_time in [1, 1000, usize::MAX] {
        let mut parts = trailing();
        let plan = inject(&broker, host, &mut parts).await.unwrap();
        assert_eq!(signature(&parts), "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e");
        let out = carried(plan, &body, at_a_time).unwrap();
        assert_eq!(
            signatures(&out),
            [
                "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
                "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
                "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
                "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"
            ]
        );
        assert_eq!(out.len(), body.len());
    }
    // What is no such body is cut off where it stops being one.
    let (one, none) = (in_pieces(&[b"abc", b""], None), "0".repeat(64));
    let text = String::from_utf8(one.clone()).unwrap();
    for (what, body) in [
        ("cut", one[..one.len() - 3].to_vec()),
        ("no end", in_pieces(&[b"abc"], None)),
        ("nothing", Vec::new()),
        ("more", [&one[..], b"x"].concat()),
        ("no piece", b"abc".repeat(200)),
        ("no signature", text.replacen(";chunk-signature=", ";other=", 1).into_bytes()),
        ("a short signature", text.replacen(&none, &none[1..], 1).into_bytes()),
        ("a size that is none", text.replacen("3;", "+3;", 1).into_bytes()),
        ("another size", text.replacen("3;", "2;", 1).into_bytes()),
        ("a larger size", text.replacen("3;", "4;", 1).into_bytes()),
        ("too much at once", text.replacen("3;", "800001;", 1).into_bytes()),
        ("more than there is", text.replacen("3;", "ffffffffffffffff;", 1).into_bytes()),
        ("trailers", in_pieces(&[b"abc", b""], Some("a:b"))),
    ] {
        let plan = inject(&broker, host, &mut plain()).await.unwrap();
        let refused = carried(plan, &body, 100).expect_err(what);
        assert!(matches!(refused, Misuse::Signature { .. } | Misuse::TooLarge { .. }), "{what}: {refused}");
    }
    for (what, body) in [
        ("no trailers", one.clone()),
        ("no signature of them", in_pieces(&[b""], None)),
        ("too many", in_pieces(&[b""], Some(&format!("a:{}", "b".repeat(20_000))))),
        ("no name", in_pieces(&[b""], Some("ab"))),
    ] {
        let plan = inject(&broker, host, &mut trailing()).await.unwrap();
        carried(plan, &body, 100).expect_err(what);
    }
    // A placeholder in a piece is one in the wrong place.
    let secret = placeholder(&broker, "AWS_SECRET_ACCESS_KEY");
    let plan = inject(&broker, host, &mut plain()).await.unwrap();
    assert!(carried(plan, &in_pieces(&[secret.as_bytes(), b""], None), 100).unwrap_err().alert());
}

#[tokio::test]
async fn what_cannot_be_signed_again_is_refused_with_the_way_out() {
    let (broker, id) = aws(KEYS);
    let secret = placeholder(&broker, "AWS_SECRET_ACCESS_KEY");
    let s3 = "b.s3.amazonaws.com";
    let with = |authorization: &str, hash: &str| {
        let headers = [
            ("authorization", authorization.to_owned()),
            ("x-amz-content-sha256", hash.to_owned()),
            ("x-amz-date", "20130524T000000Z".to_owned()),
        ];
        request("PUT", "/", &headers)
    };
    let good = signed(&id, "s3", "host;x-amz-content-sha256;x-amz-date");
    for (what, to, mut parts, code) in [
        ("pieces by SigV4a", s3, with(&good, "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"), "signature_unsupported"),
        ("events", s3, with(&good, "STREAMING-AWS4-HMAC-SHA256-EVENTS"), "signature_unsupported"),
        ("no hash", s3, with(&good, "zz"), "signature_unsupported"),
        ("SigV4a", s3, with(&good.replace("HMAC-SHA256", "ECDSA-P256-SHA256"), EMPTY), "signature_unsupported"),
        ("host not signed", s3, with(&signed(&id, "s3", "x-amz-date"), EMPTY), "signature_unsupported"),
        ("scope cut", s3, with(&good.replace("/aws4_request", ""), EMPTY), "signature_unsupported"),
        ("another host", "amazonaws.com.evil.test", with(&good, EMPTY), "credential_misused"),
        ("unsigned", s3, with(&format!("Bearer {id}"), EMPTY), "credential_misused"),
        ("the secret key itself", s3, with(&format!("Bearer {secret}"), EMPTY), "credential_misused"),
    ] {
        let refused = inject(&broker, to, &mut parts).await.map(drop).expect_err(what);
        assert_eq!(refused.code(), code, "{what}: {refused}");
    }
    for hash in ["UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"] {
        inject(&broker, s3, &mut with(&good, hash)).await.unwrap();
    }
    let (broken, id) = aws("{\"access_key_id\":\"AKIAIOSFODNN7EXAMPLE\"}");
    let refused = inject(&broken, s3, &mut with(&signed(&id, "s3", "host"), EMPTY)).await.map(drop).unwrap_err();
    assert!(refused.code() == "credential_unavailable" && !refused.to_string().contains("AKIA"), "{refused}");
}

#[tokio::test]
async fn a_client_certificate_is_for_the_named_hosts_and_in_no_environment() {
    let made = rcgen::generate_simple_self_signed(vec!["client.test".into()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["client.test".into()]).unwrap();
    let broker = |pem: String| {
        let mut certificate =
            Credential::new("test/cert", "", Hosts::limited(&["mtls.test"]).unwrap(), Source::new(&pem));
        certificate.kind = Kind::ClientCertificate;
        Broker::new(&mint(), "s", vec![certificate]).unwrap()
    };
    let pem = |label: &str, der: &[u8]| {
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            base64::engine::general_purpose::STANDARD.encode(der)
        )
    };
    let chain = pem("CERTIFICATE", made.cert.der());
    let key = pem("PRIVATE KEY", &made.signing_key.serialize_der());
    let wrong = pem("PRIVATE KEY", &other.signing_key.serialize_der());
    let good = broker(format!("{chain}{key}"));
    assert!(good.environment().is_empty() && good.names(&authority("mtls.test")) && !good.names(&authority("x.test")));
    let found = good.client_certificate(&authority("mtls.test")).await.unwrap().unwrap();
    assert_eq!((found.reference.as_str(), found.key.cert[0].as_ref()), ("test/cert", made.cert.der().as_ref()));
    assert!(good.client_certificate(&authority("x.test")).await.unwrap().is_none());
    for pem in [chain.clone(), key, "none".into(), format!("{chain}{wrong}")] {
        let refused = broker(pem).client_certificate(&authority("mtls.test")).await.unwrap_err();
        assert_eq!(refused.code(), "credential_unavailable");
    }
}

/// Made for this test.
const APP_KEY: &str = "-----BEGIN RSA PRIVATE KEY-----
MIIEowIBAAKCAQEAwT3SylAGPGOhZ/wRVwAgg0GV27nxDcUll0xTFlgNbecs2yCf
ceMHJzRPyt7i3NZVeLnn2Rk0gt+xlWcjWIHJiNQDWczqH2uFbJR8xaefL/FYNSe+
lMcuYmXCaaEooa4rsa0nmJEMyYoWzqTlRzxPuWxflWd8jx5KhenyE2jeZP2TMQhV
yZ0OKEn4CIlnjOu3QHQa9qUM4NEhtS3GHUELbY2+t+4BkefCBzf7Dgu8XgXvyujf
zjOiNhL2uqwrNkGidt9Rix46EbbuxP53piGkIHDH2yAWKhVKbVzc9mCPTX6s3Sc5
Vbn3a3T0n+9UITGdgBxs62HpwBJFwZ4nft7itQIDAQABAoIBAF9YERp4HHOMVtV3
Bdkuu1v3rqiAmGKKbK83XeFu5YVd5ABkGrd25A8gXORET5vVdst/slin+oQ+OaD1
B/gB5X2I2fRjSfrhsq2tn9hoCX9+rV5gs0Q1+HldKuyyMtl/FZjvTdOVccE4zGL9
8hBRPibHRWvyaP82W1+yW5nfCqe5potF8kttUwC5bTG32vgAOcJqoUSOVUL6j/Ff
8F5AgRmgJumTPU6+49ZxNehYPnV6eQs3EkHZHa2U6Z0PBs63KALUjhuI5vbLgeBS
YDuzP3aZ9T4ldLe8f7MEacVFctp4X0vqB1M0M4JGIv3efw2S98paRgsfdKO5jWja
9L9Au2sCgYEA+WhYx2tFucLKvWJ+JJoCkkUQc8IFebo89cPMoukXBkwE9RK6kPo1
9s8N0RzgaRBfLtqhmpU9qnZGy5dMbtJRCuPa/YcLATazR2dZh6av3CQO6g+JC0P2
20aVpY/KpwkGPFbbh8ON5lQK+6rYB7rxWQCpbhr7EGWX7gdslUor8M8CgYEAxllr
nq63rRUPlZL7wjEkBmnQ/0zqdId8+LVjrEj3kPK0C7wOXIr6bn0sPUFQ1Gt6rPVk
UW1cRmIZY6tyOybE+b7A+pKtCZXmLWz2MG4AYX1b0q/Y57bZR50m91rPrz3y8/PO
EJrRObi/0X26AFAFG+CN+jD9NeLGfsVNX/J2LTsCgYEAsRvbZ4mS0w4zwHcP0tgX
GV24CCvwjXemUHQBfnJ9qjgTkSECoW89IQ355tRVu+YnYXNaLRbr2n/xWCQR3+S0
LkKOQVlDhFIez4bhugWxfmeQu7/adsiFpUMjg5VvuFwdNH4NmQRSYQyvW/X/QMYN
G0HwD0NTpFowoJRfFEi+mVsCgYB/srg/zDqCm0mSQbQGPP71hhDBHPLhHQ2PTbCj
DcMdNbRGzcbtO6ipk7r0oOV6LMwpKD9y0RaUVboE2i9L99Te+Tli2SXAQxqS6lDB
s0BZg4ynYwEhhS30FjAtFfEZ4KdW+gMT26iSIeiU5f3nD52KahLeHcYXeC3VFg+P
kxkUWwKBgHAcKUnX2UQ3i1UwMFfMyfLAMh91aapP4v/ORXGMTqRY8iD7VTn1xILM
uDQl5Pz3J+jyPVd5dNh9xbjW4tP8705BNROpJP118X629eaclDIb7VgTDqNswVQi
ObFGeauoT8kJ+4vSkcfx2vD42o8AztOcYYmYRRZK/6/Q9Wty9GR2
-----END RSA PRIVATE KEY-----";

static NOW: AtomicU64 = AtomicU64::new(1_700_000_000);

#[derive(Debug, Default)]
struct GitHub {
    asked: Mutex<Vec<http::Request<Bytes>>>,
    status: Mutex<u16>,
}

#[async_trait]
impl Fetch for GitHub {
    async fn fetch(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, FetchError> {
        let mut asked = self.asked.lock().unwrap();
        asked.push(request);
        let body = format!(
            r#"{{"token":"ghs_installation{}","expires_at":"2023-11-14T23:13:20Z","permissions":{{}}}}"#,
            asked.len()
        );
        Ok(http::Response::builder().status(*self.status.lock().unwrap()).body(body.into()).unwrap())
    }
}

#[tokio::test]
async fn a_github_app_gets_a_token_keeps_it_and_gets_another_in_time() {
    let github = Arc::new(GitHub::default());
    *github.status.lock().unwrap() = 201;
    let key = Source::new(APP_KEY);
    let app = GitHubApp::new("1234", "99", "https://api.github.test/", key.clone(), github.clone(), || {
        NOW.load(Ordering::Relaxed)
    });
    assert_eq!(app.value().await.unwrap().expose(), "ghs_installation1");
    assert_eq!(app.value().await.unwrap().expose(), "ghs_installation1");
    {
        let asked = github.asked.lock().unwrap();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].uri(), "https://api.github.test/app/installations/99/access_tokens");
        let bearer = asked[0].headers()["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
        let (text, signature) = bearer.rsplit_once('.').unwrap();
        let pair =
            RsaKeyPair::from_der(PrivatePkcs1KeyDer::from_pem_slice(APP_KEY.as_bytes()).unwrap().secret_pkcs1_der())
                .unwrap();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public().as_ref())
            .verify(text.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
            .unwrap();
        let claims = URL_SAFE_NO_PAD.decode(text.split_once('.').unwrap().1).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims, serde_json::json!({ "iss": "1234", "iat": 1_699_999_940, "exp": 1_700_000_540 }));
    }
    // It expires at 1700003600; a token in its last two minutes is not given.
    NOW.store(1_700_003_500, Ordering::Relaxed);
    assert_eq!(app.value().await.unwrap().expose(), "ghs_installation2");
    *github.status.lock().unwrap() = 404;
    assert!(matches!(app.value().await, Err(SupplyError::Revoked)));
    *github.status.lock().unwrap() = 500;
    let error = app.value().await.unwrap_err().to_string();
    assert!(error.contains("500") && !error.contains("PRIVATE"), "{error}");
    key.set(Err(SupplyError::Revoked));
    assert!(matches!(app.value().await, Err(SupplyError::Revoked)));
    assert!(!format!("{app:?}").contains("PRIVATE"));
}
