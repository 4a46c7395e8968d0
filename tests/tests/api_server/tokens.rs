//! Tokens of service accounts: asked for, shown, reviewed, and no good any more.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kube::Client;
use serde_json::{Value, json};

use crate::server::{Server, get, json};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn claims(token: &str) -> Result<Value> {
    let part = token.split('.').nth(1).context("no token")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
}

async fn review(client: &Client, token: &str) -> Result<Value> {
    let question = json!({"spec": {"token": token}});
    let (status, answer) = json(client, "POST", REVIEWS, &question).await?;
    ensure!(status == 201, "{answer}");
    Ok(answer["status"].clone())
}

#[tokio::test]
async fn a_token_lets_its_account_in_and_dies_with_it() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    server.kubectl(&["create", "serviceaccount", "bot"])?;
    server.kubectl(&[
        "create",
        "rolebinding",
        "bot",
        "--clusterrole=view",
        "--serviceaccount=default:bot",
    ])?;
    let token = server.kubectl(&["create", "token", "bot", "--duration", "20m"])?;
    let token = token.trim();
    let said = claims(token)?;
    ensure!(said["iss"] == ISSUER && said["aud"] == json!([ISSUER]), "{said}");
    ensure!(said["sub"] == "system:serviceaccount:default:bot", "{said}");
    ensure!(
        said["exp"]
            .as_i64()
            .zip(said["iat"].as_i64())
            .is_some_and(|(end, start)| end - start == 1200)
    );
    let account = get(&master, &format!("{ACCOUNTS}/bot")).await?;
    ensure!(said["kubernetes.io"]["serviceaccount"]["uid"] == account["metadata"]["uid"]);

    let bot = server.stranger(Some(token)).await?;
    get(&bot, "/api/v1/namespaces/default/pods").await?;
    let (status, answer) = json(&bot, "GET", "/api/v1/namespaces/default/secrets", &Value::Null).await?;
    ensure!(status == 403, "{answer}");
    ensure!(
        answer["message"]
            .as_str()
            .unwrap_or_default()
            .contains("User \"system:serviceaccount:default:bot\" cannot list"),
        "{answer}"
    );
    let found = review(&master, token).await?;
    ensure!(
        found["authenticated"] == true && found["audiences"] == json!([ISSUER]),
        "{found}"
    );
    ensure!(found["user"]["username"] == "system:serviceaccount:default:bot");
    ensure!(
        found["user"]["groups"]
            == json!([
                "system:serviceaccounts",
                "system:serviceaccounts:default",
                "system:authenticated"
            ])
    );
    ensure!(found["user"]["extra"]["authentication.kubernetes.io/credential-id"][0].is_string());

    // What others check tokens with.
    let keys = get(&bot, "/openid/v1/jwks").await?;
    let header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next().context("no token")?)?)?;
    ensure!(
        keys["keys"][0]["kid"] == header["kid"] && header["alg"] == "ES256",
        "{keys} {header}"
    );
    let issuer = get(&bot, "/.well-known/openid-configuration").await?;
    ensure!(issuer["issuer"] == ISSUER, "{issuer}");
    let stranger = server.stranger(None).await?;
    ensure!(json(&stranger, "GET", "/openid/v1/jwks", &Value::Null).await?.0 == 401);

    let other = server.kubectl(&["create", "token", "bot", "--audience", "vault"])?;
    let elsewhere = server.stranger(Some(other.trim())).await?;
    ensure!(json(&elsewhere, "GET", "/version", &Value::Null).await?.0 == 401);
    let mut question = json!({"spec": {"token": other.trim(), "audiences": ["vault", "x"]}});
    let (_, answer) = json(&master, "POST", REVIEWS, &question).await?;
    ensure!(answer["status"]["audiences"] == json!(["vault"]), "{answer}");
    question["spec"]["token"] = json!(token);
    let (_, answer) = json(&master, "POST", REVIEWS, &question).await?;
    ensure!(answer["status"]["authenticated"] == false, "{answer}");

    // Another account of the same name is another account.
    server.kubectl(&["delete", "serviceaccount", "bot"])?;
    server.kubectl(&["create", "serviceaccount", "bot"])?;
    let (status, answer) = json(&bot, "GET", "/api/v1/namespaces/default/pods", &Value::Null).await?;
    ensure!(status == 401 && answer["message"] == "Unauthorized", "{answer}");
    let found = review(&master, token).await?;
    ensure!(
        found["authenticated"] == false && found["error"] == "service account token has been invalidated"
    );
    Ok(())
}

#[tokio::test]
async fn what_a_token_cannot_be_is_said() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    let revision = async || -> Result<Value> {
        Ok(get(&master, "/api/v1/namespaces").await?["metadata"]["resourceVersion"].clone())
    };
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n2"},
    });
    ensure!(
        json(&master, "POST", "/api/v1/namespaces/default/pods", &pod)
            .await?
            .0
            == 201
    );
    let uid = get(&master, "/api/v1/namespaces/default/pods/p").await?["metadata"]["uid"].clone();
    server.kubectl(&["create", "serviceaccount", "bot"])?;
    let before = revision().await?;
    let bound = |kind: &str, name: &str, uid: &Value| json!({"spec": {"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name, "uid": uid}}});
    for (account, request, code, text) in [
        ("none", json!({}), 404, "serviceaccounts \"none\" not found"),
        (
            "default",
            json!({"spec": {"expirationSeconds": 60}}),
            422,
            "TokenRequest.authentication.k8s.io \"default\" is invalid: spec.expirationSeconds: Invalid value: 60: may not \
             specify a duration less than 10 minutes",
        ),
        (
            "default",
            bound("Pod", "none", &Value::Null),
            404,
            "pods \"none\" not found",
        ),
        (
            "default",
            bound("Pod", "p", &json!("1")),
            409,
            "does not match the UID in record",
        ),
        (
            "default",
            bound("ConfigMap", "c", &Value::Null),
            400,
            "cannot bind token to object of type v1, Kind=ConfigMap",
        ),
        (
            "bot",
            bound("Pod", "p", &uid),
            400,
            "to pod running with different serviceaccount name",
        ),
    ] {
        let path = format!("{ACCOUNTS}/{account}/token");
        let (status, answer) = json(&master, "POST", &path, &request).await?;
        let message = answer["message"].as_str().unwrap_or_default();
        ensure!(status.as_u16() == code && message.contains(text), "{answer}");
    }
    // A node gets tokens for its own pods only.
    let path = format!("{ACCOUNTS}/default/token");
    let n1 = server.user("system:node:n1", Some("system:nodes")).await?;
    let (status, answer) = json(&n1, "POST", &path, &bound("Pod", "p", &uid)).await?;
    ensure!(status == 403, "{answer}");
    let message = answer["message"].as_str().unwrap_or_default();
    ensure!(
        message.contains("no relationship found between node 'n1' and this object"),
        "{answer}"
    );
    let n2 = server.user("system:node:n2", Some("system:nodes")).await?;
    for (request, text) in [
        (json!({}), "node requested token not bound to a pod"),
        (
            bound("Pod", "p", &Value::Null),
            "node requested token with a pod binding without a uid",
        ),
    ] {
        let (status, answer) = json(&n2, "POST", &path, &request).await?;
        let message = answer["message"].as_str().unwrap_or_default();
        ensure!(status == 403 && message.contains(text), "{answer}");
    }
    ensure!(revision().await? == before);

    let mut request = bound("Pod", "p", &uid);
    request["spec"]["expirationSeconds"] = json!(3607);
    let (status, answer) = json(&n2, "POST", &path, &request).await?;
    ensure!(status == 201, "{answer}");
    let token = answer["status"]["token"].as_str().context("no token")?.to_owned();
    let said = claims(&token)?["kubernetes.io"].clone();
    ensure!(
        said["pod"] == json!({"name": "p", "uid": uid}) && said["node"]["name"] == "n2",
        "{said}"
    );
    ensure!(said["warnafter"].is_i64(), "{said}");
    let found = review(&master, &token).await?;
    ensure!(
        found["user"]["extra"]["authentication.kubernetes.io/pod-name"] == json!(["p"]),
        "{found}"
    );
    server.kubectl(&["delete", "pod", "p", "--grace-period=0", "--force"])?;
    ensure!(review(&master, &token).await?["authenticated"] == false);
    Ok(())
}

#[tokio::test]
async fn a_secret_of_a_service_account_gets_its_token_and_goes_with_it() -> Result<()> {
    let server = Server::complete()?;
    let master = server.client().await?;
    server.kubectl(&["create", "serviceaccount", "bot"])?;
    let manifest = server.write(
        "secret.yaml",
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\nmetadata:\n  name: bot-token\n  \
         annotations:\n    kubernetes.io/service-account.name: bot\n",
    )?;
    server.kubectl(&["create", "-f", &manifest])?;
    server.kubectl(&[
        "wait",
        "secret/bot-token",
        "--for=jsonpath={.data.token}",
        "--timeout=20s",
    ])?;
    let secret = get(&master, "/api/v1/namespaces/default/secrets/bot-token").await?;
    let token = String::from_utf8(STANDARD.decode(secret["data"]["token"].as_str().context("no token")?)?)?;
    ensure!(claims(&token)?["exp"].is_null());
    let bot = server.stranger(Some(&token)).await?;
    get(&bot, "/api").await?;
    server.kubectl(&["delete", "serviceaccount", "bot"])?;
    ensure!(json(&bot, "GET", "/api", &Value::Null).await?.0 == 401);
    server.kubectl(&["wait", "secret/bot-token", "--for=delete", "--timeout=20s"])?;
    let nameless = json!({"metadata": {"name": "x"}, "type": "kubernetes.io/service-account-token"});
    let (status, answer) = json(&master, "POST", "/api/v1/namespaces/default/secrets", &nameless).await?;
    ensure!(status == 422, "{answer}");
    Ok(())
}
