//! Logins: from a name and a password to a ticket, by the auth service's own operations.
//!
//! Answered only where the auth role is: there guesses are counted by the address they come from,
//! which another process would hide.

use dfs_proto::FsError;
use dfs_proto::auth::{Login, Logout, Renew};
use dfs_proto::credential::Secret;
use hyper::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::caller::{Caller, To};
use super::respond::{ResponseBody, json};
use super::show::Granted;
use super::target::Resource;

/// What `POST /v1/login` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    user: String,
    password: Secret,
}

/// What `POST /v1/renew` and `/v1/logout` take.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Renewal {
    renewal: Secret,
}

/// What a logout answers.
#[derive(serde::Serialize)]
struct Ended {}

/// # Errors
/// `Malformed` if `body` is not what the resource takes; those of the auth service.
pub async fn answer(
    caller: &Caller,
    resource: Resource,
    body: &[u8],
) -> Result<Response<ResponseBody>, FsError> {
    match resource {
        Resource::Renew => {
            let Renewal { renewal } = parse(body, "{\"renewal\": ...}")?;
            let reply = caller.ask(To::Auth, &Renew { renewal }).await?;
            Ok(json(200, &Granted::new(&reply.ticket, reply.lifetime_secs, &reply.holder)))
        }
        Resource::Logout => {
            let Renewal { renewal } = parse(body, "{\"renewal\": ...}")?;
            caller.ask(To::Auth, &Logout { renewal }).await?;
            Ok(json(200, &Ended {}))
        }
        Resource::Login | Resource::Files | Resource::Directories | Resource::Stat => {
            let Credentials { user, password } = parse(body, "{\"user\": ..., \"password\": ...}")?;
            let reply = caller.ask(To::Auth, &Login { user, password }).await?;
            Ok(json(200, &Granted::of_login(&reply)))
        }
    }
}

/// The error says where the JSON is wrong and never quotes it: there are secrets in it.
fn parse<T: DeserializeOwned>(body: &[u8], form: &str) -> Result<T, FsError> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        FsError::malformed(format!("body at line {line}, column {column}; send {form}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_another_form_is_refused_without_being_quoted() {
        for body in [
            "",
            "{",
            "[]",
            "null",
            "{\"user\":\"u\"}",
            "{\"user\":1,\"password\":\"hidden\"}",
            "{\"user\":\"u\",\"password\":\"hidden\",\"x\":1}",
            "{\"user\":\"u\",\"password\":null}",
            "{\"user\":\"u\",\"password\":\"hidden\"} trailing",
            "\u{0}",
            "{\"user\":\"u\",\"user\":\"v\"}",
        ] {
            let error = parse::<Credentials>(body.as_bytes(), "FORM").err().expect(body);
            let FsError::Malformed { what } = error else { panic!("{error}") };
            assert!(what.contains("FORM") && !what.contains("hidden"), "{what}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse::<Credentials>(deep.as_bytes(), "").is_err());
    }
}
