//! Images as requests name them, and the credentials that come with a pull.

use bulkhead_proto::runtime::v1;

use super::{invalid, text};
use crate::failure::Failure;
use crate::image::{PullRequest, RegistryAuth, Secret};

/// The longest credential: tokens of some registries have several kilobytes.
const SECRET: usize = 64 << 10;

/// An image by whatever the caller knows it: id, tag or digest reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// The reference or id.
    pub reference: String,
    /// What the user wrote in the pod; information.
    pub user_specified: String,
    /// The runtime handler the image is for, "" for the default. Whether it exists is the caller's
    /// to check.
    pub handler: String,
}

impl ImageRequest {
    /// `image` must not be empty. `annotations` are the pod's, and nothing of ours; `image_ref` is
    /// an answer's field.
    pub(super) fn parse(field: &str, image: &v1::ImageSpec) -> Result<Self, Failure> {
        let at = |name: &str| format!("{field}.{name}");
        text::map(&at("annotations"), &image.annotations)?;
        Ok(Self {
            reference: text::required(&at("image"), &image.image, text::NAME)?,
            user_specified: text::plain(
                &at("user_specified_image"),
                &image.user_specified_image,
                text::NAME,
            )?,
            handler: text::plain(&at("runtime_handler"), &image.runtime_handler, text::NAME)?,
        })
    }
}

/// The name in ImageStatus and RemoveImage, where one is required.
pub fn name(image: Option<v1::ImageSpec>) -> Result<String, Failure> {
    let image = image.ok_or_else(|| invalid("image", "is required"))?;
    Ok(ImageRequest::parse("image", &image)?.reference)
}

/// The one image ListImages is asked for; none is all.
pub fn filter(request: v1::ListImagesRequest) -> Result<Option<String>, Failure> {
    let image = request.filter.and_then(|filter| filter.image);
    let name = image.map(|image| image.image).unwrap_or_default();
    let name = text::plain("filter.image.image", &name, text::NAME)?;
    Ok((!name.is_empty()).then_some(name))
}

/// PullImage, on a node with these runtime handlers. `sandbox_config` may come along and says for
/// which pod; nothing depends on it yet.
pub fn pull(request: v1::PullImageRequest, handlers: &[String]) -> Result<PullRequest, Failure> {
    let image = request
        .image
        .ok_or_else(|| invalid("image", "is required"))?;
    let image = ImageRequest::parse("image", &image)?;
    if !image.handler.is_empty() && !handlers.contains(&image.handler) {
        return Err(invalid(
            "image.runtime_handler",
            format_args!(
                "\"{}\" is not known here; known are {handlers:?} and \"\"",
                image.handler
            ),
        ));
    }
    Ok(PullRequest {
        reference: image.reference,
        auth: request.auth.map(auth).transpose()?,
    })
}

/// The fields as they came, bounded; which of them counts, and what is broken inside, the image
/// store decides.
fn auth(config: v1::AuthConfig) -> Result<RegistryAuth, Failure> {
    for (name, value) in [
        ("username", &config.username),
        ("password", &config.password),
        ("auth", &config.auth),
        ("identity_token", &config.identity_token),
        ("registry_token", &config.registry_token),
    ] {
        if value.len() > SECRET {
            return Err(invalid(&format!("auth.{name}"), "is longer than 64 KiB"));
        }
    }
    Ok(RegistryAuth {
        server_address: text::plain("auth.server_address", &config.server_address, text::NAME)?,
        username: config.username,
        password: Secret::from(config.password),
        auth: Secret::from(config.auth),
        identity_token: Secret::from(config.identity_token),
        registry_token: Secret::from(config.registry_token),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, handler: &str) -> Option<v1::ImageSpec> {
        Some(v1::ImageSpec {
            image: name.into(),
            runtime_handler: handler.into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_pull_names_an_image_and_a_handler_that_exists() {
        let handlers = ["bulkhead".to_owned()];
        for (image, good) in [
            (image("a/b:1", ""), true),
            (image("a/b:1", "bulkhead"), true),
            (image("a/b:1", "other"), false),
            (image("", ""), false),
            (image("a\nb", ""), false),
            (image(&"a".repeat(2000), ""), false),
            (None, false),
        ] {
            let request = v1::PullImageRequest {
                image,
                ..Default::default()
            };
            let shown = format!("{request:?}");
            assert_eq!(pull(request, &handlers).is_ok(), good, "{shown}");
        }
    }

    #[test]
    fn credentials_are_passed_on_whole_and_bounded() {
        let request = |password: String| v1::PullImageRequest {
            image: image("a", ""),
            auth: Some(v1::AuthConfig {
                username: "u".into(),
                password,
                server_address: "registry.example".into(),
                ..Default::default()
            }),
            sandbox_config: None,
        };
        let auth = pull(request("p".into()), &[]).unwrap().auth.unwrap();
        assert_eq!(auth.username, "u");
        assert_eq!(auth.password, Secret::from("p"));
        assert_eq!(auth.server_address, "registry.example");
        let failure = pull(request("p".repeat(SECRET + 1)), &[]).unwrap_err();
        assert_eq!(failure.message(), "auth.password: is longer than 64 KiB");
    }

    #[test]
    fn an_empty_filter_is_all_images() {
        let request = |name: &str| v1::ListImagesRequest {
            filter: Some(v1::ImageFilter {
                image: image(name, ""),
            }),
        };
        assert_eq!(filter(v1::ListImagesRequest::default()).unwrap(), None);
        assert_eq!(filter(request("")).unwrap(), None);
        assert_eq!(filter(request("a:1")).unwrap().as_deref(), Some("a:1"));
    }
}
