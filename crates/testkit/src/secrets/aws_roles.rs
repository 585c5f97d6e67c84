//! Those who lend keys for a role in AWS: a machine's metadata service, a container's endpoint, and the token service.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::{Answer, Asked, Service, lock};

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lends {
    /// Version 2 of the metadata service of EC2, to the role `worker`.
    Instance,
    /// The endpoint of ECS and of EKS Pod Identity, at `/v1/credentials`, to whoever sends the token.
    Container,
    /// The token service, for a web identity.
    WebIdentity,
}

/// Keys that are lent for an hour, to whoever asks as documented.
#[derive(Debug)]
pub struct FakeAwsRoles {
    lends: Lends,
    token: String,
    keys: Mutex<[String; 3]>,
}

impl FakeAwsRoles {
    /// Lends to whoever shows this token; a machine's metadata service makes its own from it.
    pub fn new(lends: Lends, token: &str) -> Self {
        Self { lends, token: token.to_owned(), keys: Mutex::default() }
    }

    /// What is lent from now on; an empty id for nothing.
    pub fn lend(&self, key_id: &str, key: &str, session: &str) {
        *lock(&self.keys) = [key_id, key, session].map(str::to_owned);
    }

    fn instance(&self, asked: &Asked, ends: &str) -> Answer {
        let own = format!("{}-of-the-machine", self.token);
        let begin = "/latest/meta-data/iam/security-credentials/";
        if asked.method == "PUT" && asked.path == "/latest/api/token" {
            let lifetime = asked.header("x-aws-ec2-metadata-token-ttl-seconds").parse::<u32>();
            return match lifetime {
                Ok(1..=21_600) if asked.header("x-forwarded-for").is_empty() => Answer::new(200, own),
                _ => Answer::new(400, "Bad Request"),
            };
        }
        if asked.method != "GET" || asked.header("x-aws-ec2-metadata-token") != own {
            return Answer::new(401, "Unauthorized");
        }
        let [id, key, session] = &*lock(&self.keys);
        match asked.path.strip_prefix(begin) {
            Some("") if !id.is_empty() => Answer::new(200, "worker"),
            Some("worker") if id == "none" => {
                Answer::json(200, &json!({"Code": "AssumeRoleUnauthorizedAccess", "Message": "asked for by the test"}))
            }
            Some("worker") if !id.is_empty() => Answer::json(
                200,
                &json!({"Code": "Success", "LastUpdated": "2026-05-28T20:26:40Z", "Type": "AWS-HMAC", "AccessKeyId": id,
                    "SecretAccessKey": key, "Token": session, "Expiration": ends}),
            ),
            _ => Answer::new(404, "Not Found"),
        }
    }

    fn container(&self, asked: &Asked, ends: &str) -> Answer {
        let [id, key, session] = &*lock(&self.keys);
        if asked.method != "GET" || asked.path != "/v1/credentials" || asked.header("authorization") != self.token {
            return Answer::json(403, &json!({"message": "asked for by the test"}));
        }
        Answer::json(
            200,
            &json!({"RoleArn": "arn:aws:iam::1:role/worker", "AccessKeyId": id, "SecretAccessKey": key, "Token": session,
                "Expiration": ends}),
        )
    }

    fn web_identity(&self, asked: &Asked, ends: &str) -> Answer {
        let form = String::from_utf8_lossy(&asked.body).into_owned();
        let field = |name| Asked::field(&form, name);
        let refuse = |status, code: &str| {
            Answer::new(
                status,
                format!(
                    "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
                     <Code>{code}</Code><Message>asked for by the test</Message></Error><RequestId>r</RequestId></ErrorResponse>"
                ),
            )
        };
        if asked.method != "POST"
            || asked.path != "/"
            || asked.header("content-type") != "application/x-www-form-urlencoded"
            || field("Action") != "AssumeRoleWithWebIdentity"
            || field("Version") != "2011-06-15"
        {
            return refuse(400, "InvalidAction");
        }
        if !field("RoleArn").starts_with("arn:aws:iam::") || field("RoleSessionName").len() < 2 {
            return refuse(400, "ValidationError");
        }
        if field("WebIdentityToken") != self.token {
            return refuse(400, "InvalidIdentityToken");
        }
        if field("RoleArn") != "arn:aws:iam::1:role/worker" {
            return refuse(403, "AccessDenied");
        }
        let [id, key, session] = &*lock(&self.keys);
        Answer::new(
            200,
            format!(
                "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n\
                 <AssumeRoleWithWebIdentityResult>\n<Audience>sts.amazonaws.com</Audience>\n<AssumedRoleUser>\
                 <AssumedRoleId>A:{name}</AssumedRoleId><Arn>arn:aws:sts::1:assumed-role/worker/{name}</Arn></AssumedRoleUser>\n\
                 <Provider>arn:aws:iam::1:oidc-provider/p</Provider>\n<Credentials>\n<AccessKeyId>{id}</AccessKeyId>\n\
                 <SecretAccessKey>{key}</SecretAccessKey>\n<SessionToken>{session}</SessionToken>\n\
                 <Expiration>{ends}</Expiration>\n</Credentials>\n\
                 <SubjectFromWebIdentityToken>system:serviceaccount:n:s</SubjectFromWebIdentityToken>\n\
                 </AssumeRoleWithWebIdentityResult>\n<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata>\n\
                 </AssumeRoleWithWebIdentityResponse>",
                name = field("RoleSessionName"),
            ),
        )
    }
}

impl Service for FakeAwsRoles {
    fn answer(&self, asked: &Asked, now: SystemTime) -> Answer {
        let ends = jiff::Timestamp::try_from(now + Duration::from_secs(3600)).expect("a time in range");
        let ends = ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        match self.lends {
            Lends::Instance => self.instance(asked, &ends),
            Lends::Container => self.container(asked, &ends),
            Lends::WebIdentity => self.web_identity(asked, &ends),
        }
    }
}
