//! Claims and volumes as kubectl shows them.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_lab::wait::wait_until;

use crate::server::Server;

const OBJECTS: &str = r"
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  capacity: {storage: 2Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: manual
  claimRef: {namespace: default, name: data}
  hostPath: {path: /data}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: manual
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: waiting}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
";

#[test]
fn kubectl_shows_claims_and_volumes() -> Result<()> {
    let server = Server::complete()?;
    let run = |arguments: &[&str]| server.kubectl(arguments);
    let file = server.write("volumes.yaml", OBJECTS)?;
    run(&["apply", "-f", &file])?;
    run(&[
        "wait",
        "--for=jsonpath={.status.phase}=Bound",
        "pvc/data",
        "--timeout=30s",
    ])?;
    let row = |kind: &str, name: &str| -> Result<Vec<String>> {
        let table = run(&["get", kind])?;
        let line = table
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned();
        Ok(line.split_whitespace().map(str::to_owned).collect())
    };
    assert_eq!(
        row("pvc", "data")?[..6],
        ["data", "Bound", "disk", "2Gi", "RWO", "manual"]
    );
    assert_eq!(row("pvc", "waiting")?[..3], ["waiting", "Pending", "local-path"]);
    let volume = row("pv", "disk")?;
    assert_eq!(
        volume[..7],
        ["disk", "2Gi", "RWO", "Retain", "Bound", "default/data", "manual"]
    );
    let class = row("storageclass", "local-path")?;
    assert_eq!(
        class[..5],
        [
            "local-path",
            "(default)",
            "weft.dev/local-path",
            "Delete",
            "WaitForFirstConsumer"
        ]
    );
    let described = run(&["describe", "pvc", "data"])?;
    for line in [
        "Status:        Bound",
        "Volume:        disk",
        "Capacity:      2Gi",
        "Access Modes:  RWO",
    ] {
        assert!(described.contains(line), "{described}");
    }
    wait_until("the waiting claim's event", Duration::from_secs(20), || {
        let described = run(&["describe", "pvc", "waiting"])?;
        ensure!(
            described.contains("waiting for first consumer to be created before binding"),
            "{described}"
        );
        Ok(())
    })?;
    // Applying it again changes nothing.
    let again = run(&["apply", "-f", &file])?;
    assert_eq!(again.matches("unchanged").count(), 3, "{again}");
    let described = run(&["describe", "pv", "disk"])?;
    assert!(described.contains("Claim:           default/data"), "{described}");
    Ok(())
}
