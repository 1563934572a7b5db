"""The dialect of Azure OpenAI: OpenAI's images API behind deployments.

A deployment is a model under a name of the operator's, in the path of the URL. The facts are in
`docs/reference/dialects.md#azure-openai`.
"""

from gateway.upstream.azure.dialect import DEFAULT_API_VERSION, AzureDialect

__all__ = ["DEFAULT_API_VERSION", "AzureDialect"]
