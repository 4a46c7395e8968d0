//! Join tokens: made, listed and deleted through the API with the administrator's credentials, kept as Secrets as Kubernetes does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rand::RngExt as _;
use serde_json::json;

use crate::controllers::is_not_found;
use crate::typed;

/// What tokens consist of.
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Length of a token's id, before the dot.
const ID: usize = 6;
/// Length of its secret, behind the dot.
const SECRET: usize = 16;

/// `weft token …`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    command: Command,
    /// Directory of the controller, for its admin.kubeconfig
    #[arg(
        long,
        env = "WEFT_DATA_DIR",
        default_value = "/var/lib/weft/controller",
        global = true
    )]
    data_dir: PathBuf,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Make a token that lets machines join, and print it
    Create {
        /// How long it is valid; 0: for ever
        #[arg(long, value_parser = crate::config::duration, default_value = "24h")]
        ttl: Duration,
    },
    /// List the tokens, each with the time it ends
    List,
    /// Delete tokens: no machine can join with them any more, and those that have stay
    Delete {
        /// The tokens, or what is before their dot
        #[arg(required = true, value_name = "TOKEN", value_parser = token_id)]
        ids: Vec<String>,
    },
}

/// Runs `weft token …`.
///
/// # Errors
/// If the API cannot be reached or refuses.
pub async fn run(args: Args, out: &mut impl Write) -> Result<(), TokenError> {
    let client = admin_client(&args.data_dir).await?;
    match args.command {
        Command::Create { ttl } => {
            let token = create(&client, (!ttl.is_zero()).then_some(ttl)).await?;
            writeln!(out, "{}", token.token)?;
        }
        Command::Delete { ids } => {
            for id in ids {
                delete(&client, &id).await?;
                writeln!(out, "bootstrap token {id:?} deleted")?;
            }
        }
        Command::List => {
            for token in list(&client).await? {
                writeln!(
                    out,
                    "{}\t{}",
                    token.token,
                    token.expires.as_deref().unwrap_or("never")
                )?;
            }
        }
    }
    Ok(())
}

/// Why tokens cannot be made, listed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The administrator's kubeconfig is not usable.
    #[error("cannot use {path}; run this on the controller's machine, with its --data-dir")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// There is no such token.
    #[error("there is no bootstrap token {0:?}: `weft token list` shows those that are there")]
    Unknown(String),
    /// The API refused.
    #[error("the API server refused")]
    Api(#[from] kube::Error),
    /// The answer cannot be printed.
    #[error("cannot print")]
    Print(#[from] std::io::Error),
}

/// A token that exists.
#[derive(Clone, Debug)]
pub struct Token {
    /// `id.secret`.
    pub token: String,
    /// Until when it is valid; `None`: for ever.
    pub expires: Option<String>,
}

/// A client with the credentials of `admin.kubeconfig` in the controller's data directory.
///
/// # Errors
/// If the file is not there or not usable.
pub async fn admin_client(data_dir: &Path) -> Result<Client, TokenError> {
    let path = data_dir.join("admin.kubeconfig");
    let failed = |source| TokenError::Kubeconfig {
        path: path.clone(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(&path).map_err(failed)?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(failed)?;
    Ok(Client::try_from(config)?)
}

/// Makes a token that is valid for `lifetime`.
///
/// # Errors
/// If the API refuses.
pub async fn create(client: &Client, lifetime: Option<Duration>) -> Result<Token, TokenError> {
    let (id, secret) = (random_text(ID), random_text(SECRET));
    let expires = lifetime.map(|lifetime| {
        let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
        let end = Timestamp::now().checked_add(lifetime).unwrap_or(Timestamp::MAX);
        Timestamp::from_second(end.as_second()).unwrap_or(end).to_string()
    });
    let mut object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true",
            "description": "lets machines join the cluster",
        },
    });
    if let Some(expires) = &expires {
        object["stringData"]["expiration"] = json!(expires);
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let object = typed::from_value(&object).map_err(kube::Error::SerdeError)?;
    secrets.create(&PostParams::default(), &object).await?;
    Ok(Token {
        token: format!("{id}.{secret}"),
        expires,
    })
}

/// The tokens that are there.
///
/// # Errors
/// If the API refuses.
pub async fn list(client: &Client) -> Result<Vec<Token>, TokenError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let params = ListParams::default().fields("type=bootstrap.kubernetes.io/token");
    let found = secrets.list(&params).await?;
    let tokens = found.items.into_iter().filter_map(|secret| {
        let data = secret.data?;
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        Some(Token {
            token: format!("{}.{}", text("token-id")?, text("token-secret")?),
            expires: text("expiration"),
        })
    });
    Ok(tokens.collect())
}

/// Deletes the token with this id.
///
/// # Errors
/// If there is none, or the API refuses.
pub async fn delete(client: &Client, id: &str) -> Result<(), TokenError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let name = format!("bootstrap-token-{id}");
    match secrets.delete(&name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Err(TokenError::Unknown(id.to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// The id of a token, which may stand without its secret.
fn token_id(text: &str) -> Result<String, String> {
    let (id, secret) = text.split_once('.').unwrap_or((text, ""));
    let fits =
        |part: &str, length: usize| part.len() == length && part.bytes().all(|byte| ALPHABET.contains(&byte));
    if fits(id, ID) && (fits(secret, SECRET) || !text.contains('.')) {
        Ok(id.to_owned())
    } else {
        Err(format!(
            "{ID} characters of a-z and 0-9, and with a dot {SECRET} more"
        ))
    }
}

fn random_text(length: usize) -> String {
    let mut random = rand::rng();
    (0..length)
        .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_named_by_its_id_or_whole() {
        assert_eq!(token_id("abc123").as_deref(), Ok("abc123"));
        assert_eq!(token_id("abc123.0123456789abcdef").as_deref(), Ok("abc123"));
        for bad in [
            "",
            "abc12",
            "ABC123",
            "abc123.",
            "abc123.short",
            "abc123.0123456789abcdef.x",
        ] {
            assert!(token_id(bad).is_err(), "{bad}");
        }
    }
}
