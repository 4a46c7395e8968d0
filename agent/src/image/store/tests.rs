use serde_json::{Value, json};

use super::*;

const NAME: &str = "weft.local/test:1";

type Members = BTreeMap<String, Vec<u8>>;

/// An archive in the making: its members by name.
struct TestArchive {
    members: Members,
}

fn layer(path: &str, text: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({
        "architecture": super::super::archive::architecture(), "os": "linux",
        "config": {"Entrypoint": ["/run"], "Cmd": null, "Env": ["A=b"], "User": "7"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

impl TestArchive {
    fn oci(layers: &[Vec<u8>], config: &Value) -> Self {
        let mut members = BTreeMap::new();
        let mut blob = |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            let size = bytes.len();
            members.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
            json!({"mediaType": "x", "digest": digest, "size": size})
        };
        let layers: Vec<_> = layers.iter().map(|layer| blob(gzip(layer))).collect();
        let config = blob(config.to_string().into_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut entry = blob(manifest.to_string().into_bytes());
        entry["annotations"] = json!({"io.containerd.image.name": NAME});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        members.insert("oci-layout".to_owned(), b"{}".to_vec());
        members.insert("index.json".to_owned(), index.to_string().into_bytes());
        Self { members }
    }

    fn docker(layers: &[Vec<u8>], config: &Value) -> Self {
        let mut members = BTreeMap::new();
        let mut names = Vec::new();
        for (n, layer) in layers.iter().enumerate() {
            names.push(format!("{n}/layer.tar"));
            members.insert(format!("./{n}/layer.tar"), layer.clone());
        }
        let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": names}]);
        members.insert("config.json".to_owned(), config.to_string().into_bytes());
        members.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
        Self { members }
    }

    fn write(&self, path: &Path) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in &self.members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        builder.finish().unwrap();
    }

    fn largest(&mut self) -> &mut Vec<u8> {
        self.members.values_mut().max_by_key(|bytes| bytes.len()).unwrap()
    }
}

struct World {
    dir: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("images"));
        Self { dir, store }
    }

    fn load(&self, archive: &TestArchive) -> Result<Vec<(Reference, ImageRecord)>, ImageError> {
        let path = self.dir.path().join("archive.tar");
        archive.write(&path);
        self.store.load(&path, None)
    }

    fn image(&self) -> Option<Image> {
        self.store.image(&Reference::parse(NAME).unwrap()).unwrap()
    }

    fn assert_empty(&self) {
        assert_eq!(self.store.list().unwrap(), []);
        for dir in ["layers", "tmp"] {
            let path = self.dir.path().join("images").join(dir);
            assert_eq!(fs::read_dir(path).map_or(0, Iterator::count), 0, "{dir}");
        }
    }
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![layer("a", "lower"), layer("b", "upper")]
}

#[test]
fn both_kinds_of_archive_give_the_same_image() {
    let layers = two_layers();
    let mut seen = Vec::new();
    for archive in [
        TestArchive::oci(&layers, &config(&layers)),
        TestArchive::docker(&layers, &config(&layers)),
    ] {
        let world = World::new();
        let loaded = world.load(&archive).unwrap();
        assert_eq!(world.store.list().unwrap(), loaded);
        let image = world.image().unwrap();
        assert_eq!(image.run.entrypoint, ["/run"]);
        assert_eq!((image.run.cmd.len(), image.run.user.as_str()), (0, "7"));
        let texts: Vec<_> = image
            .layers
            .iter()
            .zip(["a", "b"])
            .map(|(layer, file)| fs::read_to_string(image.layers_dir.join(layer).join(file)).unwrap())
            .collect();
        assert_eq!(texts, ["lower", "upper"]);
        seen.push((image.record.config, image.layers));
    }
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn what_is_damaged_is_refused_and_nothing_is_left() {
    let layers = vec![layer("a", &"x".repeat(100_000))];
    let good = || TestArchive::oci(&layers, &config(&layers));

    let world = World::new();
    let mut archive = good();
    let bytes = archive.largest();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    let error = world.load(&archive).unwrap_err();
    assert!(error.to_string().contains("the archive is damaged"), "{error}");
    world.assert_empty();

    // A layer that is what its blob says, and not what the configuration says.
    let mut wrong = config(&layers);
    wrong["rootfs"]["diff_ids"] = json!([Digest::of(b"another")]);
    let error = world.load(&TestArchive::oci(&layers, &wrong)).unwrap_err();
    assert!(matches!(error, ImageError::LayerDigest { .. }), "{error}");
    world.assert_empty();

    // The same in a docker archive, which has no digests of its own.
    let error = world.load(&TestArchive::docker(&layers, &wrong)).unwrap_err();
    assert!(matches!(error, ImageError::LayerDigest { .. }), "{error}");
    world.assert_empty();
    world.load(&good()).unwrap();
}

#[test]
fn bad_archives_are_named_for_what_they_are() {
    let layers = two_layers();
    let world = World::new();
    let edited = |edit: &dyn Fn(&mut Members)| {
        let mut archive = TestArchive::oci(&layers, &config(&layers));
        edit(&mut archive.members);
        world.load(&archive).unwrap_err().to_string()
    };
    for (text, error) in [
        (
            "neither an index.json",
            edited(&|members| drop(members.remove("index.json"))),
        ),
        (
            "index.json is not a valid document",
            edited(&|members| drop(members.insert("index.json".to_owned(), b"{".to_vec()))),
        ),
        (
            "the archive has no blobs/sha256/",
            edited(&|members| {
                members.retain(|name, _| !name.starts_with("blobs"));
            }),
        ),
        (
            "9000000 bytes",
            edited(&|members| drop(members.insert("index.json".to_owned(), vec![b' '; 9_000_000]))),
        ),
        (
            "not a valid document",
            edited(&|members| {
                let index = json!({"manifests": [{"digest": "sha256:../../x"}]});
                members.insert("index.json".to_owned(), index.to_string().into_bytes());
            }),
        ),
    ] {
        assert!(error.contains(text), "{error}");
    }
    let mut foreign = config(&layers);
    foreign["architecture"] = json!("pdp11");
    let error = world.load(&TestArchive::oci(&layers, &foreign)).unwrap_err();
    assert!(matches!(error, ImageError::Platform { .. }), "{error}");
    let mut fewer = config(&layers);
    fewer["rootfs"]["diff_ids"] = json!([]);
    let error = world.load(&TestArchive::oci(&layers, &fewer)).unwrap_err();
    assert!(error.to_string().contains("2 layers"), "{error}");
    fs::write(world.dir.path().join("text"), "not a tar file at all".repeat(100)).unwrap();
    assert!(world.store.load(&world.dir.path().join("text"), None).is_err());
    assert!(world.store.load(&world.dir.path().join("absent"), None).is_err());
    world.assert_empty();
}

#[test]
fn an_archive_that_ends_early_is_refused() {
    let layers = vec![layer("a", &"x".repeat(100_000))];
    let world = World::new();
    let path = world.dir.path().join("whole.tar");
    TestArchive::docker(&layers, &config(&layers)).write(&path);
    let bytes = fs::read(&path).unwrap();
    for keep in [0, 100, 512, 5_000, 60_000] {
        fs::write(&path, &bytes[..keep]).unwrap();
        assert!(world.store.load(&path, None).is_err(), "{keep}");
        world.assert_empty();
    }
}

#[test]
fn what_a_killed_loader_left_is_cleared_by_the_next() {
    let layers = two_layers();
    let world = World::new();
    let scratch = world.dir.path().join("images/tmp");
    fs::create_dir_all(scratch.join("half/done")).unwrap();
    fs::write(scratch.join("file"), "half").unwrap();
    world.load(&TestArchive::oci(&layers, &config(&layers))).unwrap();
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    assert!(world.image().is_some());
}

#[test]
fn loaders_at_the_same_time_all_succeed() {
    let world = World::new();
    let loaders: Vec<_> = (0..6)
        .map(|n| {
            let layers = vec![layer("shared", "s"), layer("own", &n.to_string())];
            let mut archive = TestArchive::docker(&layers, &config(&layers));
            let name = format!("weft.local/test:{n}");
            let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["0/layer.tar", "1/layer.tar"]}]);
            archive.members.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
            let path = world.dir.path().join(format!("{n}.tar"));
            archive.write(&path);
            let store = world.store.clone();
            std::thread::spawn(move || store.load(&path, None).map(drop))
        })
        .collect();
    for loader in loaders {
        loader.join().unwrap().unwrap();
    }
    assert_eq!(world.store.list().unwrap().len(), 6);
    let layers = fs::read_dir(world.dir.path().join("images/layers")).unwrap();
    assert_eq!(layers.count(), 7);
}
